// What the GPU ops have in common. An op is a class of static functions, for whatever runtime's
// adapter; those that `BasicOp` lacks it must have.
#pragma once
#include <limits>
#include <string>
#include <vector>

#include "spec/attribute_checks.h"
#include "tensors.h"

namespace moe_export::gpu {

template <class OpAttributes>
struct BasicOp {
  using Attributes = OpAttributes;
  // static constexpr TensorKind kOutputs[];
  // static std::vector<TensorKind> inputs(const Attributes&);
  //   What the inputs may be, in the order of their names.
  // static void check_shapes(const Attributes&, const std::vector<Shape>& inputs,
  //                          std::optional<ElementType>);
  //   Throws for wrong shapes; sizes and the type may be unknown.
  // static void prepare(const Attributes&, ElementType);
  // static void run(const Attributes&, const Call&, int tile_rows);

  /// Throws for attributes that keep to the contract, but not to what this library computes.
  static void check_computed(const Attributes&) {}

  /// Throws for activations that this library does not compute the op on.
  static void check_element(const Attributes&, ElementType) {}

  /// Rows of the tiles that a call may choose from; none where there is no choice.
  static std::vector<int> tiles(const Attributes&, ElementType) { return {}; }

  /// Bytes of scratch for inputs of at most these shapes.
  static size_t workspace_bytes(const Attributes&, ElementType, const std::vector<Shape>&) {
    return 0;
  }
};

/// Throws unless `count` fits the kernels' 32-bit numbers.
inline void check_count(const std::string& label, const std::string& what, int64_t count) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  require(count <= kMost, label, [&] {
    return what + " must be at most " + std::to_string(kMost) + "; found " + std::to_string(count);
  });
}

/// Throws unless T · K slots of `ids` [T, K] fit the kernels' 32-bit numbers.
inline void check_slots(const std::string& label, const std::string& name, const Shape& ids) {
  if (ids[0] == kUnknownSize || ids[1] == kUnknownSize) return;
  check_count(label, name + "' slots T · K", ids[0] * ids[1]);
}

/// Throws unless the library computes these weights with activations of some type.
/// @param label of the weights' constraint.
template <class Op>
void check_computed_weights(const typename Op::Attributes& a, const std::string& label) {
  require(a.weight_layout == WeightLayout::kCudaV1, label, [&] {
    return "this library computes weight_layout cuda_v1; found " + name_of(a.weight_layout);
  });
  bool computed = false;
  for (const ElementType element : {ElementType::kFp32, ElementType::kFp16, ElementType::kBf16}) {
    computed |= !Op::tiles(a, element).empty();
  }
  require(computed, label, [&] {
    return "this library does not compute weight_type " + name_of(a.weight_type) +
           (a.block_size > 0 ? " in blocks of " + std::to_string(a.block_size) : "") +
           " in layout " + name_of(a.weight_layout);
  });
}

/// Throws unless the library computes these weights with activations of type `element`.
/// @param name of the activations.
template <class Op>
void check_element_with_weights(const typename Op::Attributes& a, ElementType element,
                                const std::string& label, const std::string& name) {
  require(!Op::tiles(a, element).empty(), label, [&] {
    return "this library does not compute weight_type " + name_of(a.weight_type) + " with " + name +
           " of " + std::string(cuda::name_of(element));
  });
}

/// Throws unless a node's inputs are as many as the attributes say, and of the right types.
template <class Op>
void check_types(const typename Op::Attributes& a, const std::vector<TensorType>& types) {
  const std::string label = std::string(label_prefix(a)) + "_inputs";
  const std::vector<std::string> names = input_names(a);
  check_input_count(label, names, types.size());
  const std::vector<TensorKind> kinds = Op::inputs(a);
  for (size_t i = 0; i < types.size(); ++i) check_type(label, names[i], kinds[i], types[i]);
  Op::check_element(a, *element_of(types[0]));
}

}  // namespace moe_export::gpu
