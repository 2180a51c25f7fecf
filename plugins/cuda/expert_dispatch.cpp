#include "expert_dispatch.h"

#include "row_launches.h"

namespace moe_export::cuda {
namespace {

struct Scratch {
  int32_t *counts, *pairs;
  size_t used_bytes;

  Scratch(const ExpertDispatchAttributes& a, int64_t num_slots, void* memory) {
    Workspace workspace(memory);
    counts = workspace.take<int32_t>(sort_counts(num_slots, a.num_experts));
    pairs = workspace.take<int32_t>(num_slots);
    used_bytes = workspace.used_bytes();
  }
};

}  // namespace

size_t expert_dispatch_workspace_bytes(const ExpertDispatchAttributes& attributes,
                                       int64_t num_slots) {
  return Scratch(attributes, num_slots, nullptr).used_bytes;
}

void prepare_expert_dispatch(const ExpertDispatchAttributes& attributes, ElementType element) {
  prepare_sort(attributes.num_experts);
  prepare_copy(element);
  prepare_row_experts();
}

void expert_dispatch(const ExpertDispatchAttributes& attributes,
                     const ExpertDispatchTensors& tensors, void* workspace, Stream stream) {
  const auto& a = attributes;
  const auto& t = tensors;
  const auto num_slots = static_cast<int32_t>(t.num_tokens * t.top_k);
  const auto num_experts = static_cast<int32_t>(a.num_experts);
  const Scratch scratch(a, num_slots, workspace);
  sort_pairs({t.expert_ids.data, a.first_expert, t.expert_ids.is_int64, num_slots, num_experts, 0,
              scratch.counts, t.row_map, scratch.pairs, t.group_ends, nullptr},
             stream);
  if (num_slots == 0) return;
  CopyRowsCall copy = {};
  copy.from = t.x;
  copy.to = t.rows;
  copy.sources = scratch.pairs;
  copy.num_used = t.group_ends + num_experts - 1;
  copy.from_stride = copy.to_stride = a.hidden_size;
  copy.divisor = static_cast<int32_t>(t.top_k);
  copy.num_rows = num_slots;
  copy.width = copy.to_width = static_cast<int32_t>(a.hidden_size);
  copy_rows(copy, t.element, stream);
  name_row_experts({t.group_ends, t.row_experts, num_experts, num_slots}, stream);
}

}  // namespace moe_export::cuda
