#include "shape_inference.h"

#include <atomic>
#include <memory>

namespace moe_export::ort {

Dimension new_dimension() {
  // Equal names mean equal sizes to the runtime, which reuses buffers by them: so never one twice.
  static std::atomic<int64_t> num_names{0};
  return {-1, "moe_export_size_" + std::to_string(++num_names)};
}

Dimension inferred_dimension(const OrtApi* api, const OrtShapeInferContext* context, size_t input,
                             size_t axis) {
  size_t num_inputs = 0;
  check(api, ShapeInferContext_GetInputCount(api, context, &num_inputs));
  if (num_inputs <= input) return new_dimension();
  OrtTensorTypeAndShapeInfo* info = nullptr;  // the context owns it
  check(api, ShapeInferContext_GetInputTypeShape(api, context, input, &info));
  size_t rank = 0;
  if (info != nullptr) check(api, GetDimensionsCount(api, info, &rank));
  constexpr size_t kMatrix = 2;
  if (rank != kMatrix) return new_dimension();
  int64_t sizes[kMatrix] = {};
  const char* names[kMatrix] = {};
  check(api, GetDimensions(api, info, sizes, kMatrix));
  check(api, GetSymbolicDimensions(api, info, names, kMatrix));
  if (sizes[axis] >= 0) return {sizes[axis], ""};
  const bool named = names[axis] != nullptr && *names[axis] != '\0';
  return named ? Dimension{-1, names[axis]} : new_dimension();
}

int64_t inferred_attribute(const OrtApi* api, const OrtShapeInferContext* context,
                           const char* name) {
  const OrtOpAttr* attribute = nullptr;
  check(api, ShapeInferContext_GetAttribute(api, context, name, &attribute));
  int64_t value = 0;
  size_t size = 0;
  check(api, ReadOpAttr(api, attribute, ORT_OP_ATTR_INT, &value, sizeof(value), &size));
  return value;
}

namespace {

/// The type of input 0 where it is one that activations have, else float32.
ONNXTensorElementDataType inferred_activation_type(const OrtApi* api,
                                                   const OrtShapeInferContext* context) {
  auto type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  size_t num_inputs = 0;
  check(api, ShapeInferContext_GetInputCount(api, context, &num_inputs));
  OrtTensorTypeAndShapeInfo* info = nullptr;  // the context owns it
  if (num_inputs > 0) check(api, ShapeInferContext_GetInputTypeShape(api, context, 0, &info));
  if (info != nullptr) check(api, GetTensorElementType(api, info, &type));
  const bool half = type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ||
                    type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
  return half ? type : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

}  // namespace

void set_inferred_output(const OrtApi* api, OrtShapeInferContext* context, size_t index,
                         ONNXTensorElementDataType type, const std::vector<Dimension>& shape) {
  std::vector<int64_t> sizes;
  std::vector<const char*> names;
  for (const Dimension& dimension : shape) {
    sizes.push_back(dimension.size);
    names.push_back(dimension.size < 0 ? dimension.name.c_str() : "");
  }
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED) {
    type = inferred_activation_type(api, context);
  }
  OrtTensorTypeAndShapeInfo* raw_info = nullptr;
  check(api, CreateTensorTypeAndShapeInfo(api, &raw_info));
  const auto release = [api](auto* info) { ReleaseTensorTypeAndShapeInfo(api, info); };
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(release)> info(raw_info, release);
  check(api, SetTensorElementType(api, info.get(), type));
  check(api, SetDimensions(api, info.get(), sizes.data(), sizes.size()));
  check(api, SetSymbolicDimensions(api, info.get(), names.data(), names.size()));
  check(api, ShapeInferContext_SetOutputTypeShape(api, context, index, info.get()));
}

}  // namespace moe_export::ort
