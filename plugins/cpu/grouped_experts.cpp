#include "grouped_experts.h"

#include <utility>

#include "expert_kernels.h"
#include "packed_experts.h"
#include "panel_kernels.h"
#include "row_major_experts.h"

namespace moe_export::cpu {
namespace {

bool is_packed(const GroupedExpertsAttributes& attributes) {
  return attributes.weight_layout == WeightLayout::kCpuV1;
}

}  // namespace

PackedExpertBytes packed_expert_bytes(const GroupedExpertsAttributes& a) {
  if (!is_packed(a)) return {0, 0};
  const auto bytes = [&](int64_t rows, bool gated, int64_t width) {
    const PanelLayout layout =
        PanelLayout::of(a.weight_type, a.block_size, a.has_zero_point, width);
    return num_panels(rows, gated) * layout.panel_bytes;
  };
  return {bytes(a.intermediate_size, a.gated, a.hidden_size),
          bytes(a.hidden_size, false, a.intermediate_size)};
}

GroupedExpertsPlan plan_grouped_experts(const GroupedExpertsAttributes& attributes,
                                        const ExpertIds& ids, int64_t num_pairs, Isa isa) {
  SortedPairs sorted = sort_pairs(ids, num_pairs, attributes.first_expert, attributes.num_experts);
  const int64_t max_tile = is_packed(attributes)
                               ? panel_kernels(isa, attributes.weight_type)->max_tile
                               : expert_kernels(isa).max_tile;
  RowTiles tiles = cut_tiles(sorted.ends, max_tile);
  return {std::move(sorted), std::move(tiles), isa};
}

size_t grouped_experts_workspace_bytes(const GroupedExpertsAttributes& attributes,
                                       const GroupedExpertsPlan& plan) {
  return is_packed(attributes) ? packed_workspace_bytes(attributes, plan)
                               : row_major_workspace_bytes(attributes, plan);
}

void grouped_experts(const GroupedExpertsAttributes& attributes,
                     const GroupedExpertsTensors& tensors, const GroupedExpertsPlan& plan,
                     void* workspace, ThreadPool& pool) {
  const auto run = is_packed(attributes) ? run_packed_experts : run_row_major_experts;
  run(attributes, tensors, plan, workspace, pool);
}

}  // namespace moe_export::cpu
