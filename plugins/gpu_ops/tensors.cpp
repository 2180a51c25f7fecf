#include "tensors.h"

namespace moe_export::gpu {
namespace {

constexpr ElementType kElements[] = {ElementType::kFp32, ElementType::kFp16, ElementType::kBf16};

const char* name_of(TensorType type) {
  static constexpr const char* kNames[] = {
      "float32", "float16", "bfloat16", "int8", "int32", "int64", "a type that no op takes"};
  return kNames[static_cast<size_t>(type)];
}

const char* types_of(TensorKind kind) {
  static constexpr const char* kTypes[] = {"float32, float16 or bfloat16", "int32 or int64",
                                           "float32", "int32", "int8"};
  return kTypes[static_cast<size_t>(kind)];
}

}  // namespace

std::optional<ElementType> element_of(TensorType type) {
  const auto index = static_cast<size_t>(type);
  return index < std::size(kElements) ? std::optional(kElements[index]) : std::nullopt;
}

std::optional<ElementType> element_named(const std::string& name) {
  for (const ElementType element : kElements) {
    if (cuda::name_of(element) == name) return element;
  }
  return std::nullopt;
}

bool is_allowed(TensorKind kind, TensorType type) {
  switch (kind) {
    case TensorKind::kElement:
      return element_of(type).has_value();
    case TensorKind::kIds:
      return type == TensorType::kInt32 || type == TensorType::kInt64;
    default:
      return type == type_of(kind, type);
  }
}

TensorType type_of(TensorKind output, TensorType element) {
  switch (output) {
    case TensorKind::kElement:
      return element;
    case TensorKind::kFloat:
      return TensorType::kFp32;
    case TensorKind::kPacked:
      return TensorType::kInt8;
    default:
      return TensorType::kInt32;
  }
}

void check_type(const std::string& label, const std::string& name, TensorKind kind,
                TensorType type) {
  require(is_allowed(kind, type), label,
          [&] { return name + " must be " + types_of(kind) + "; found " + name_of(type); });
}

void* Call::workspace() const {
  const auto address = reinterpret_cast<uintptr_t>(workspace_);
  const uintptr_t beyond = address % kWorkspaceAlignment;
  return static_cast<char*>(workspace_) + (beyond == 0 ? 0 : kWorkspaceAlignment - beyond);
}

}  // namespace moe_export::gpu
