#pragma once
#include <cstdint>

#include "isa.h"
#include "parallel.h"
#include "spec/contract.h"

namespace moe_export::cpu {

/// Tensors of one call. M rows, T tokens, K experts per token, N = `hidden_size`; all row-major.
struct ExpertCombineTensors {
  int64_t num_tokens;
  int64_t top_k;
  const float* rows;            ///< [M, N]
  const int32_t* row_map;       ///< [T, K], rows in [0, M), or -1 for none
  const float* expert_weights;  ///< [T, K]
  float* y;                     ///< [T, N]
};

/// Adds up each token's rows by weight, in order of k; the same bits for any pool.
void expert_combine(const ExpertCombineAttributes& attributes, const ExpertCombineTensors& tensors,
                    Isa isa, ThreadPool& pool);

}  // namespace moe_export::cpu
