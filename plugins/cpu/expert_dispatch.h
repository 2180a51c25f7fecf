#pragma once
#include <cstdint>

#include "expert_plan.h"
#include "parallel.h"
#include "spec/contract.h"

namespace moe_export::cpu {

/// Tensors of one call. T tokens, K experts per token, E experts, H hidden size; all row-major.
struct ExpertDispatchTensors {
  int64_t num_tokens;
  int64_t top_k;
  const float* x;        ///< [T, H]
  ExpertIds expert_ids;  ///< [T, K]
  float* rows;           ///< [T·K, H]
  int32_t* row_map;      ///< [T, K]
  int32_t* group_ends;   ///< [E]
  int32_t* row_experts;  ///< [T·K]
};

/// Sorts the slots by expert; T · K must fit an int32.
void expert_dispatch(const ExpertDispatchAttributes& attributes,
                     const ExpertDispatchTensors& tensors, ThreadPool& pool);

}  // namespace moe_export::cpu
