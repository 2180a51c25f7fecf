#include "grouped_matmul.h"

#include "matmul_launch.h"
#include "row_launches.h"

namespace moe_export::cuda {
namespace {

MatmulForm form_of(const GroupedMatMulAttributes& a, ElementType element) {
  return {element, a.weight_type, a.block_size, a.has_zero_point, false};
}

struct Scratch {
  int32_t *ends, *tiles;
  void *rows, *y;  ///< as wide as the packed weight, where the tensors themselves do not serve
  int64_t inputs, outputs;
  size_t used_bytes;

  Scratch(const GroupedMatMulAttributes& a, ElementType element, int64_t num_rows, void* memory)
      : inputs(packed_columns(a.in_features, a.block_size)),
        outputs(packed_columns(a.out_features, 0)) {
    Workspace workspace(memory);
    ends = workspace.take<int32_t>(a.num_experts);
    tiles = workspace.take<int32_t>(
        TileList::size(most_tiles(num_rows, a.num_experts, kLeastTileRows)));
    rows = workspace.take_bytes(num_rows * inputs * size_bytes(element));
    y = workspace.take_bytes(num_rows * outputs * size_bytes(element));
    used_bytes = workspace.used_bytes();
  }
};

}  // namespace

std::vector<int> grouped_matmul_tiles(const GroupedMatMulAttributes& attributes,
                                      ElementType element) {
  return tile_rows(form_of(attributes, element));
}

int64_t packed_matrix_bytes(const GroupedMatMulAttributes& attributes, ElementType element) {
  return packed_matrix(form_of(attributes, element), attributes.out_features,
                       attributes.in_features)
      .bytes;
}

size_t grouped_matmul_workspace_bytes(const GroupedMatMulAttributes& attributes,
                                      ElementType element, int64_t num_rows) {
  return Scratch(attributes, element, num_rows, nullptr).used_bytes;
}

void prepare_grouped_matmul(const GroupedMatMulAttributes& attributes, ElementType element) {
  prepare_tiles(attributes.num_experts);
  prepare_copy(element);
  prepare_matmul(form_of(attributes, element));
}

void grouped_matmul(const GroupedMatMulAttributes& attributes, const GroupedMatMulTensors& tensors,
                    int tile_rows, void* workspace, Stream stream) {
  const auto& a = attributes;
  const auto& t = tensors;
  if (t.num_rows == 0) return;
  const auto num_rows = static_cast<int32_t>(t.num_rows);
  const Scratch scratch(a, t.element, t.num_rows, workspace);
  const MatmulForm form = form_of(a, t.element);
  if (tile_rows == 0) tile_rows = choose_tile_rows(form, t.num_rows, a.num_experts);

  list_row_tiles({t.group_ends, scratch.ends, scratch.tiles, static_cast<int32_t>(a.num_experts),
                  num_rows, tile_rows},
                 stream);
  const MatmulRows rows = widen_rows({t.rows, a.in_features}, t.num_rows, a.in_features,
                                     scratch.inputs, scratch.rows, t.element, stream);
  const bool direct = serves_as_rows({t.y, a.out_features}, a.out_features);
  MatmulCall call = {};
  call.x = rows.data;
  call.x_stride = rows.stride;
  call.weight = t.weight;
  call.bias = t.bias;
  call.y = direct ? t.y : scratch.y;
  call.y_stride = call.y_width = direct ? a.out_features : scratch.outputs;
  call.ends = scratch.ends;
  call.tiles = scratch.tiles;
  call.most_tiles = most_tiles(t.num_rows, a.num_experts, tile_rows);
  call.num_outputs = a.out_features;
  call.columns = a.in_features;
  launch_matmul(form, tile_rows, call, stream);

  // Rows that no expert has become zero; others are copied unless they are there already.
  CopyRowsCall copy = {};
  copy.from = direct ? nullptr : scratch.y;
  copy.to = t.y;
  copy.num_used = scratch.ends + a.num_experts - 1;
  copy.from_stride = scratch.outputs;
  copy.to_stride = a.out_features;
  copy.divisor = 1;
  copy.num_rows = num_rows;
  copy.width = copy.to_width = static_cast<int32_t>(a.out_features);
  copy_rows(copy, t.element, stream);
}

}  // namespace moe_export::cuda
