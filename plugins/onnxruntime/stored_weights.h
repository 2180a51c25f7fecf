#pragma once
#include <string>

#include "spec/attribute_checks.h"

namespace moe_export::ort {

/// Throws unless the weights are stored in a way that this library computes.
/// @param label of the weights' constraint.
template <class Attributes>
void check_stored_weights(const Attributes& a, const std::string& label) {
  const bool row_major = a.weight_layout == WeightLayout::kRowMajor;
  require(row_major || a.weight_layout == WeightLayout::kCpuV1, label, [&] {
    return "this library computes weight_layout row_major and cpu_v1; found " +
           name_of(a.weight_layout);
  });
  const bool computed =
      row_major ? a.weight_type == WeightType::kFp32 : a.weight_type != WeightType::kFp8;
  require(computed, label, [&] {
    return "this library does not compute weight_type " + name_of(a.weight_type) + " in layout " +
           name_of(a.weight_layout);
  });
}

}  // namespace moe_export::ort
