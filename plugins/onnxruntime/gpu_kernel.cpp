#include "gpu_kernel.h"

namespace moe_export::ort {

gpu::TensorType tensor_type_of(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return gpu::TensorType::kFp32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return gpu::TensorType::kFp16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return gpu::TensorType::kBf16;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
      return gpu::TensorType::kInt8;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return gpu::TensorType::kInt32;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return gpu::TensorType::kInt64;
    default:
      return gpu::TensorType::kOther;
  }
}

}  // namespace moe_export::ort
