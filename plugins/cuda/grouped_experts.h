#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "element_type.h"
#include "launch.h"
#include "spec/contract.h"

namespace moe_export::cuda {

/// Tensors of one call in device memory. T tokens, K experts per token, E experts, H hidden, I
/// intermediate size; all row-major. T · K must fit an int32.
struct GroupedExpertsTensors {
  int64_t num_tokens;
  int64_t top_k;
  ElementType element;          ///< of x and y
  const void* x;                ///< [T, H]
  ExpertIds expert_ids;         ///< [T, K]
  const float* expert_weights;  ///< [T, K]
  const void* up_weight;        ///< packed, cuda_v1
  const void* down_weight;      ///< packed, cuda_v1
  const float* up_bias;         ///< [E, 2·I] ([E, I] ungated), or null
  const float* down_bias;       ///< [E, H], or null
  void* y;                      ///< [T, H]
};

/// Rows of the tiles that a call may choose from, ascending; empty if this library does not compute
/// these experts with activations of that type.
std::vector<int> grouped_experts_tiles(const GroupedExpertsAttributes& attributes,
                                       ElementType element);

/// Bytes of one expert's packed weights.
struct PackedExpertBytes {
  int64_t up;
  int64_t down;
};
PackedExpertBytes packed_expert_bytes(const GroupedExpertsAttributes& attributes,
                                      ElementType element);

/// Bytes of scratch that a call of at most so many tokens needs, whichever its tile.
size_t grouped_experts_workspace_bytes(const GroupedExpertsAttributes& attributes,
                                       ElementType element, int64_t num_tokens, int64_t top_k);

/// Loads what `grouped_experts` launches.
void prepare_grouped_experts(const GroupedExpertsAttributes& attributes, ElementType element);

/// Computes `GroupedExperts`; sums in float32, the same bits every time.
/// @param tile_rows one of `grouped_experts_tiles`, or 0 for the one that suits the call.
/// @param workspace `grouped_experts_workspace_bytes`, aligned to 256 bytes.
void grouped_experts(const GroupedExpertsAttributes& attributes,
                     const GroupedExpertsTensors& tensors, int tile_rows, void* workspace,
                     Stream stream);

}  // namespace moe_export::cuda
