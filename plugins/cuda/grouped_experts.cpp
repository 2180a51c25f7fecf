#include "grouped_experts.h"

#include <algorithm>

#include "matmul_launch.h"
#include "row_launches.h"

namespace moe_export::cuda {
namespace {

MatmulForm up_form(const GroupedExpertsAttributes& a, ElementType element) {
  return {element, a.weight_type, a.block_size, a.has_zero_point, a.gated};
}
MatmulForm down_form(const GroupedExpertsAttributes& a, ElementType element) {
  return {element, a.weight_type, a.block_size, a.has_zero_point, false};
}

/// Scratch of a call: rows between the products are as wide as the packed weights.
struct Scratch {
  int32_t *counts, *rows, *pairs, *ends, *tiles;
  void* x;  ///< [T, packed columns], where x itself cannot be read
  void* inner;
  float* outer;
  int64_t hidden, intermediate;
  size_t used_bytes;

  Scratch(const GroupedExpertsAttributes& a, ElementType element, int64_t num_tokens, int64_t top_k,
          void* memory) {
    const int64_t num_pairs = num_tokens * top_k;
    hidden = packed_columns(a.hidden_size, a.block_size);
    intermediate = packed_columns(a.intermediate_size, a.block_size);
    Workspace workspace(memory);
    counts = workspace.take<int32_t>(sort_counts(num_pairs, a.num_experts));
    rows = workspace.take<int32_t>(num_pairs);
    pairs = workspace.take<int32_t>(num_pairs);
    ends = workspace.take<int32_t>(a.num_experts);
    tiles = workspace.take<int32_t>(
        TileList::size(most_tiles(num_pairs, a.num_experts, kLeastTileRows)));
    x = workspace.take_bytes(num_tokens * hidden * size_bytes(element));
    inner = workspace.take_bytes(num_pairs * intermediate * size_bytes(element));
    outer = workspace.take<float>(num_pairs * hidden);
    used_bytes = workspace.used_bytes();
  }
};

}  // namespace

std::vector<int> grouped_experts_tiles(const GroupedExpertsAttributes& attributes,
                                       ElementType element) {
  return tile_rows(up_form(attributes, element));
}

PackedExpertBytes packed_expert_bytes(const GroupedExpertsAttributes& attributes,
                                      ElementType element) {
  const auto& a = attributes;
  const int64_t up_rows = a.intermediate_size * (a.gated ? 2 : 1);
  return {packed_matrix(up_form(a, element), up_rows, a.hidden_size).bytes,
          packed_matrix(down_form(a, element), a.hidden_size, a.intermediate_size).bytes};
}

size_t grouped_experts_workspace_bytes(const GroupedExpertsAttributes& attributes,
                                       ElementType element, int64_t num_tokens, int64_t top_k) {
  return Scratch(attributes, element, num_tokens, top_k, nullptr).used_bytes;
}

void prepare_grouped_experts(const GroupedExpertsAttributes& attributes, ElementType element) {
  prepare_sort(attributes.num_experts);
  prepare_copy(element);
  prepare_matmul(up_form(attributes, element));
  prepare_matmul(down_form(attributes, element));
  prepare_combine(element, true);
}

void grouped_experts(const GroupedExpertsAttributes& attributes,
                     const GroupedExpertsTensors& tensors, int tile_rows, void* workspace,
                     Stream stream) {
  const auto& a = attributes;
  const auto& t = tensors;
  const int64_t num_pairs = t.num_tokens * t.top_k;
  if (num_pairs == 0) return;
  const Scratch scratch(a, t.element, t.num_tokens, t.top_k, workspace);
  const MatmulForm up = up_form(a, t.element), down = down_form(a, t.element);
  if (tile_rows == 0) tile_rows = choose_tile_rows(up, num_pairs, a.num_experts);

  sort_pairs({t.expert_ids.data, a.first_expert, t.expert_ids.is_int64,
              static_cast<int32_t>(num_pairs), static_cast<int32_t>(a.num_experts), tile_rows,
              scratch.counts, scratch.rows, scratch.pairs, scratch.ends, scratch.tiles},
             stream);
  const MatmulRows x = widen_rows({t.x, a.hidden_size}, t.num_tokens, a.hidden_size, scratch.hidden,
                                  scratch.x, t.element, stream);

  const bool weights_input = a.weight_on == WeightOn::kInput;
  MatmulCall sorted = {};
  sorted.ends = scratch.ends;
  sorted.tiles = scratch.tiles;
  sorted.most_tiles = most_tiles(num_pairs, a.num_experts, tile_rows);
  sorted.pairs = scratch.pairs;

  MatmulCall call = sorted;
  call.x = x.data;
  call.x_stride = x.stride;
  call.top_k = t.top_k;
  call.weight = t.up_weight;
  call.bias = t.up_bias;
  call.row_weights = weights_input ? t.expert_weights : nullptr;
  call.y = scratch.inner;
  call.y_stride = call.y_width = scratch.intermediate;
  call.num_outputs = a.intermediate_size;
  call.columns = a.hidden_size;
  call.activation = a.activation;
  call.alpha = a.alpha;
  call.limit = a.limit;
  call.limits_output = a.limit_on == LimitOn::kOutput;
  call.up_offset = a.up_offset;
  launch_matmul(up, tile_rows, call, stream);

  MatmulCall second = sorted;
  second.x = scratch.inner;
  second.x_stride = scratch.intermediate;
  second.weight = t.down_weight;
  second.bias = t.down_bias;
  second.y = scratch.outer;
  second.fp32_output = true;
  second.y_stride = second.y_width = scratch.hidden;
  second.num_outputs = a.hidden_size;
  second.columns = a.intermediate_size;
  launch_matmul(down, tile_rows, second, stream);

  combine_rows({scratch.outer, scratch.rows, weights_input ? nullptr : t.expert_weights, t.y,
                scratch.hidden, static_cast<int32_t>(num_pairs), static_cast<int32_t>(t.num_tokens),
                static_cast<int32_t>(t.top_k), static_cast<int32_t>(a.hidden_size)},
               t.element, true, stream);
}

}  // namespace moe_export::cuda
