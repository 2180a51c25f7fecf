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

/// T, the first dimension of the matrix that is input 0; where the graph doesn't know it, a new
/// name.
Dimension inferred_tokens(const OrtApi* api, const OrtShapeInferContext* context);

/// The integer attribute `name` of the node.
int64_t inferred_attribute(const OrtApi* api, const OrtShapeInferContext* context,
                           const char* name);

/// Sets type and shape of a node's output.
/// @param shape unknown dimensions must have a name.
void set_inferred_output(const OrtApi* api, OrtShapeInferContext* context, size_t index,
                         ONNXTensorElementDataType type, const std::vector<Dimension>& shape);

}  // namespace moe_export::ort
