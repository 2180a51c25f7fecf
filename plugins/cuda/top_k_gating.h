#pragma once
#include <cstdint>

#include "element_type.h"
#include "launch.h"
#include "spec/contract.h"

namespace moe_export::cuda {

/// What the kernel takes: more are refused by whoever calls it.
constexpr int64_t kMostGatedExperts = 2048;
constexpr int64_t kMostTopK = 32;

/// Tensors of one call in device memory. T tokens, E experts, K = `top_k`; all row-major.
struct TopKGatingTensors {
  int64_t num_tokens;
  int64_t num_experts;
  ElementType logit_type;
  const void* logits;           ///< [T, E]
  const float* selection_bias;  ///< [E], or null
  int32_t* expert_ids;          ///< [T, K], best first, ties to the lower id
  float* expert_weights;        ///< [T, K]
};

/// Loads what `top_k_gating` launches.
void prepare_top_k_gating(ElementType logit_type);

/// Chooses each token's experts and their weights, in float32.
void top_k_gating(const TopKGatingAttributes& attributes, const TopKGatingTensors& tensors,
                  Stream stream);

}  // namespace moe_export::cuda
