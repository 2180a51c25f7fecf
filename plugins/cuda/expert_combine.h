#pragma once
#include <cstdint>

#include "element_type.h"
#include "launch.h"
#include "spec/contract.h"

namespace moe_export::cuda {

/// Tensors of one call in device memory. M rows, T tokens, K experts per token, N = `hidden_size`;
/// all row-major.
struct ExpertCombineTensors {
  int64_t num_rows;
  int64_t num_tokens;
  int64_t top_k;
  ElementType element;          ///< of rows and y
  const void* rows;             ///< [M, N]
  const int32_t* row_map;       ///< [T, K], rows in [0, M); what lies outside adds nothing
  const float* expert_weights;  ///< [T, K]
  void* y;                      ///< [T, N]
};

/// Loads what `expert_combine` launches.
void prepare_expert_combine(ElementType element);

/// Adds up each token's rows by weight, in float32 and in order of k.
void expert_combine(const ExpertCombineAttributes& attributes, const ExpertCombineTensors& tensors,
                    Stream stream);

}  // namespace moe_export::cuda
