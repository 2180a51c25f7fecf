#pragma once
#include <cstddef>
#include <cstdint>

#include "element_type.h"
#include "launch.h"
#include "spec/contract.h"

namespace moe_export::cuda {

/// Tensors of one call in device memory. T tokens, K experts per token, E experts, H hidden size;
/// all row-major. T · K must fit an int32.
struct ExpertDispatchTensors {
  int64_t num_tokens;
  int64_t top_k;
  ElementType element;   ///< of x and rows
  const void* x;         ///< [T, H]
  ExpertIds expert_ids;  ///< [T, K]
  void* rows;            ///< [T·K, H]
  int32_t* row_map;      ///< [T, K]
  int32_t* group_ends;   ///< [E]
  int32_t* row_experts;  ///< [T·K]
};

/// Bytes of scratch that a call of at most so many slots T · K needs.
size_t expert_dispatch_workspace_bytes(const ExpertDispatchAttributes& attributes,
                                       int64_t num_slots);

/// Loads what `expert_dispatch` launches.
void prepare_expert_dispatch(const ExpertDispatchAttributes& attributes, ElementType element);

/// Sorts the slots by expert.
/// @param workspace `expert_dispatch_workspace_bytes`, aligned to 256 bytes.
void expert_dispatch(const ExpertDispatchAttributes& attributes,
                     const ExpertDispatchTensors& tensors, void* workspace, Stream stream);

}  // namespace moe_export::cuda
