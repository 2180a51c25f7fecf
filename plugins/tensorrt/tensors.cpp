#include "tensors.h"

namespace moe_export::trt {

using gpu::TensorType;

TensorType tensor_type_of(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
      return TensorType::kFp32;
    case DataType::kHALF:
      return TensorType::kFp16;
    case DataType::kBF16:
      return TensorType::kBf16;
    case DataType::kINT8:
      return TensorType::kInt8;
    case DataType::kINT32:
      return TensorType::kInt32;
    case DataType::kINT64:
      return TensorType::kInt64;
    default:
      return TensorType::kOther;
  }
}

DataType data_type_of(TensorType type) {
  constexpr DataType kTypes[] = {DataType::kFLOAT, DataType::kHALF,  DataType::kBF16,
                                 DataType::kINT8,  DataType::kINT32, DataType::kINT64};
  return kTypes[static_cast<size_t>(type)];
}

Shape shape_of(const nvinfer1::Dims& dims) { return {dims.d, dims.d + dims.nbDims}; }

Shape shape_of(const nvinfer1::DimsExprs& dims) {
  Shape shape;
  for (int32_t i = 0; i < dims.nbDims; ++i) {
    shape.push_back(dims.d[i]->isConstant() ? dims.d[i]->getConstantValue() : kUnknownSize);
  }
  return shape;
}

}  // namespace moe_export::trt
