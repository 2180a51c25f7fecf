#pragma once
#include <cstdint>
#include <initializer_list>
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

/// Throws unless blocks and zero points are ones that the weight type has.
/// @param columns of the weights.
/// @param label   of the constraint on blocks and zero points.
template <class Attributes>
void check_blocks(const Attributes& a, std::initializer_list<int64_t> columns,
                  const std::string& label) {
  const int64_t block = a.block_size;
  bool fits = block == 0;
  if (a.weight_type == WeightType::kInt4) fits = block == 32 || block == 64 || block == 128;
  if (a.weight_type == WeightType::kMxfp4) fits = block == 32;
  require(fits, label, [&] {
    return "block_size must be 32, 64 or 128 for int4, 32 for mxfp4 and 0 otherwise; found " +
           std::to_string(block) + " with " + name_of(a.weight_type);
  });
  require(!a.has_zero_point || a.weight_type == WeightType::kInt4, label, [&] {
    return "has_zero_point belongs to int4; weight_type is " + name_of(a.weight_type);
  });
  for (const int64_t count : columns) {
    require(a.weight_type != WeightType::kMxfp4 || count % block == 0, label,
            [&] { return "mxfp4 needs multiples of 32 columns; found " + std::to_string(count); });
  }
}

/// Throws unless the weights are stored in a way that this library computes.
/// @param columns of the weights.
/// @param weights label of the weights' constraint.
/// @param blocks  label of the constraint on blocks and zero points.
template <class Attributes>
void check_stored_weights(const Attributes& a, std::initializer_list<int64_t> columns,
                          const std::string& weights, const std::string& blocks) {
  check_blocks(a, columns, blocks);
  const bool row_major = a.weight_layout == WeightLayout::kRowMajor;
  require(row_major || a.weight_layout == WeightLayout::kCpuV1, weights, [&] {
    return "this library computes weight_layout row_major and cpu_v1; found " +
           name_of(a.weight_layout);
  });
  const bool computed =
      row_major ? a.weight_type == WeightType::kFp32 : a.weight_type != WeightType::kFp8;
  require(computed, weights, [&] {
    return "this library does not compute weight_type " + name_of(a.weight_type) + " in layout " +
           name_of(a.weight_layout);
  });
}

}  // namespace moe_export::ort
