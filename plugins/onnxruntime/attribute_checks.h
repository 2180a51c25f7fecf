#pragma once
#include <cstdint>
#include <string>

#include "errors.h"
#include "spec/contract.h"

namespace moe_export::ort {

template <class Enum>
std::string name_of(Enum value) {
  return std::string(EnumNames<Enum>::kValues[static_cast<size_t>(value)]);
}

/// Throws unless the attribute `name` is at least `minimum`.
inline void check_minimum(const std::string& label, const char* name, int64_t value,
                          int64_t minimum) {
  require(value >= minimum, label, [&] {
    return std::string(name) + " must be at least " + std::to_string(minimum) + "; found " +
           std::to_string(value);
  });
}

/// Throws unless the weights are stored in a way that this library computes.
/// @param weights label of the weights' constraint.
/// @param blocks  label of the constraint on blocks and zero points.
template <class Attributes>
void check_stored_weights(const Attributes& attributes, const std::string& weights,
                          const std::string& blocks) {
  const auto& a = attributes;
  require(a.weight_type == WeightType::kFp32, weights, [&] {
    return "this library computes weight_type fp32 only; found " + name_of(a.weight_type);
  });
  require(a.weight_layout == WeightLayout::kRowMajor, weights, [&] {
    return "this library computes weight_layout row_major only; found " + name_of(a.weight_layout);
  });
  require(a.block_size == 0 && !a.has_zero_point, blocks, [&] {
    return "block_size and has_zero_point belong to quantized weights; weight_type is " +
           name_of(a.weight_type);
  });
}

}  // namespace moe_export::ort
