#pragma once
#include <cstdint>

#include "isa.h"
#include "parallel.h"
#include "spec/contract.h"

namespace moe_export::cpu {

/// Tensors of one call. T tokens, E experts, K = `top_k` experts per token; all row-major.
struct TopKGatingTensors {
  int64_t num_tokens;
  int64_t num_experts;
  const float* logits;          ///< [T, E]
  const float* selection_bias;  ///< [E], or null
  int32_t* expert_ids;          ///< [T, K], best first, ties to the lower id
  float* expert_weights;        ///< [T, K]
};

/// Chooses each token's experts and their weights, in float32.
void top_k_gating(const TopKGatingAttributes& attributes, const TopKGatingTensors& tensors, Isa isa,
                  ThreadPool& pool);

}  // namespace moe_export::cpu
