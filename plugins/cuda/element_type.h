#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace moe_export::cuda {

/// Type of activations.
enum class ElementType : int32_t { kFp32, kFp16, kBf16 };

/// As names of kernels have it.
constexpr std::string_view name_of(ElementType type) {
  constexpr std::string_view kNames[] = {"fp32", "fp16", "bf16"};
  return kNames[static_cast<size_t>(type)];
}
constexpr size_t size_bytes(ElementType type) { return type == ElementType::kFp32 ? 4 : 2; }

/// Expert ids of a call: int32 or int64, in device memory.
struct ExpertIds {
  const void* data;
  bool is_int64;
};

}  // namespace moe_export::cuda
