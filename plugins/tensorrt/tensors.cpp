#include "tensors.h"

namespace moe_export::trt {
namespace {

constexpr ElementType kElements[] = {ElementType::kFp32, ElementType::kFp16, ElementType::kBf16};

std::string name_of(DataType type) {
  static constexpr const char* kNames[] = {"float32", "float16", "int8",     "int32", "bool",
                                           "uint8",   "fp8",     "bfloat16", "int64", "int4"};
  const auto index = static_cast<size_t>(type);
  return index < std::size(kNames) ? kNames[index] : "data type " + std::to_string(index);
}

const char* types_of(TensorKind kind) {
  static constexpr const char* kTypes[] = {"float32, float16 or bfloat16", "int32 or int64",
                                           "float32", "int32", "int8"};
  return kTypes[static_cast<size_t>(kind)];
}

}  // namespace

std::optional<ElementType> element_of(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
      return ElementType::kFp32;
    case DataType::kHALF:
      return ElementType::kFp16;
    case DataType::kBF16:
      return ElementType::kBf16;
    default:
      return std::nullopt;
  }
}

std::optional<ElementType> element_named(const std::string& name) {
  for (const ElementType element : kElements) {
    if (cuda::name_of(element) == name) return element;
  }
  return std::nullopt;
}

bool is_allowed(TensorKind kind, DataType type) {
  switch (kind) {
    case TensorKind::kElement:
      return element_of(type).has_value();
    case TensorKind::kIds:
      return type == DataType::kINT32 || type == DataType::kINT64;
    default:
      return type == type_of(kind, type);
  }
}

DataType type_of(TensorKind output, DataType element) {
  switch (output) {
    case TensorKind::kElement:
      return element;
    case TensorKind::kFloat:
      return DataType::kFLOAT;
    case TensorKind::kPacked:
      return DataType::kINT8;
    default:
      return DataType::kINT32;
  }
}

void check_type(const std::string& label, const std::string& name, TensorKind kind, DataType type) {
  require(is_allowed(kind, type), label,
          [&] { return name + " must be " + types_of(kind) + "; found " + name_of(type); });
}

Shape shape_of(const nvinfer1::Dims& dims) { return {dims.d, dims.d + dims.nbDims}; }

Shape shape_of(const nvinfer1::DimsExprs& dims) {
  Shape shape;
  for (int32_t i = 0; i < dims.nbDims; ++i) {
    shape.push_back(dims.d[i]->isConstant() ? dims.d[i]->getConstantValue() : kUnknownSize);
  }
  return shape;
}

void* Call::workspace() const {
  const auto address = reinterpret_cast<uintptr_t>(workspace_);
  const uintptr_t beyond = address % kWorkspaceAlignment;
  return static_cast<char*>(workspace_) + (beyond == 0 ? 0 : kWorkspaceAlignment - beyond);
}

}  // namespace moe_export::trt
