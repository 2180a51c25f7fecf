#pragma once
#include <cstdint>

#include "spec/contract.h"

namespace moe_export::cuda {

/// One call of `TopKGating`, as its kernel takes it. T tokens, E experts, K = `top_k`; all
/// row-major.
struct TopKGatingCall {
  TopKGatingAttributes attributes;
  const void* logits;           ///< [T, E]
  const float* selection_bias;  ///< [E], or null
  int32_t* expert_ids;          ///< [T, K], best first, ties to the lower id
  float* expert_weights;        ///< [T, K]
  int32_t num_tokens;
  int32_t num_experts;
};

/// Bytes of shared memory that each warp needs.
constexpr int64_t gating_shared_bytes(int64_t num_experts) { return 3 * 4 * num_experts; }

}  // namespace moe_export::cuda
