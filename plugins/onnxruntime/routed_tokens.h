#pragma once
#include <string>

#include "expert_plan.h"
#include "kernel_io.h"

namespace moe_export::ort {

/// Tokens and the experts they chose: what `GroupedExperts` and `ExpertDispatch` take first.
struct RoutedTokens {
  TensorView x;  ///< [T, H]
  cpu::ExpertIds ids;
  Shape ids_shape;  ///< [T, K]

  int64_t num_tokens() const { return ids_shape[0]; }
  int64_t top_k() const { return ids_shape[1]; }
};

/// Reads inputs 0 and 1.
/// @param prefix of the op's labels: messages start with prefix_inputs, prefix_c1 or prefix_c2.
/// @throws ContractError a type or shape is wrong.
RoutedTokens read_routed_tokens(const KernelIo& io, const std::string& prefix, int64_t hidden_size);

}  // namespace moe_export::ort
