#pragma once
#include <cstddef>
#include <cstdint>

#include "expert_plan.h"
#include "isa.h"
#include "parallel.h"
#include "spec/contract.h"

namespace moe_export::cpu {

/// Tensors of one call. T tokens, K experts per token, E experts, H hidden, I intermediate size;
/// all row-major.
struct GroupedExpertsTensors {
  int64_t num_tokens;
  int64_t top_k;
  const float* x;               ///< [T, H]
  const float* expert_weights;  ///< [T, K]
  const void* up_weight;        ///< [E, 2·I, H], gate rows first ([E, I, H] ungated); or packed
  const void* down_weight;      ///< [E, H, I]; or packed
  const float* up_bias;         ///< [E, 2·I] ([E, I] ungated), or null
  const float* down_bias;       ///< [E, H], or null
  float* y;  ///< [T, H], scratch until the results are added up: no other tensor may overlap it
};

/// Bytes of one expert's packed weights; both 0 for row-major ones.
struct PackedExpertBytes {
  int64_t up;
  int64_t down;
};
PackedExpertBytes packed_expert_bytes(const GroupedExpertsAttributes& attributes);

/// The rows that a call's ids make, and their tiles for `isa`.
struct GroupedExpertsPlan {
  SortedPairs sorted;
  RowTiles tiles;
  Isa isa;
};

/// Plans a call; there must be kernels for the weights.
/// @param ids [T, K], `num_pairs` = T · K of them; those out of range cost neither work nor
/// scratch.
GroupedExpertsPlan plan_grouped_experts(const GroupedExpertsAttributes& attributes,
                                        const ExpertIds& ids, int64_t num_pairs, Isa isa);

/// Bytes of scratch that a call needs.
size_t grouped_experts_workspace_bytes(const GroupedExpertsAttributes& attributes,
                                       const GroupedExpertsPlan& plan);

/// Computes `GroupedExperts`: row-major weights in float32, packed ones (panel_layout.h) as their
/// kernels do (panel_kernels.h). The bits of a token's row of `y` depend on that token, its
/// ids and weights, and on the plan's `isa`; not on the pool nor on the other tokens.
/// @param plan      of the ids that belong to `tensors`.
/// @param workspace `grouped_experts_workspace_bytes` bytes, aligned to `kWorkspaceAlignment`.
void grouped_experts(const GroupedExpertsAttributes& attributes,
                     const GroupedExpertsTensors& tensors, const GroupedExpertsPlan& plan,
                     void* workspace, ThreadPool& pool);

}  // namespace moe_export::cpu
