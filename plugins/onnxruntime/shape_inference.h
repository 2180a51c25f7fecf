#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "errors.h"

namespace moe_export::ort {

/// A dimension as the graph knows it: a size, or a name where `size` is negative.
struct Dimension {
  int64_t size = -1;
  std::string name;
};

/// A dimension that the graph knows nothing about: a name that no other has.
Dimension new_dimension();

/// Dimension `axis` of the matrix that is input `input`; a new one where the graph doesn't know it.
Dimension inferred_dimension(const OrtApi* api, const OrtShapeInferContext* context, size_t input,
                             size_t axis);

/// The integer attribute `name` of the node.
int64_t inferred_attribute(const OrtApi* api, const OrtShapeInferContext* context,
                           const char* name);

/// Sets type and shape of a node's output.
/// @param type  undefined for that of the activations, input 0.
/// @param shape unknown dimensions must have a name.
void set_inferred_output(const OrtApi* api, OrtShapeInferContext* context, size_t index,
                         ONNXTensorElementDataType type, const std::vector<Dimension>& shape);

}  // namespace moe_export::ort
