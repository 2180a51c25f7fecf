#include "elements.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

namespace moe_export::test {
namespace {

using cuda::ElementType;

constexpr int64_t kColumnBlock = 64, kExpertAlignment = 128;

int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

float read(ElementType element, const char* value) {
  if (element == ElementType::kFp16) return __half2float(*reinterpret_cast<const __half*>(value));
  if (element == ElementType::kFp32) return *reinterpret_cast<const float*>(value);
  return __bfloat162float(*reinterpret_cast<const __nv_bfloat16*>(value));
}

void write(ElementType element, float value, char* to) {
  if (element == ElementType::kFp16) {
    *reinterpret_cast<__half*>(to) = __float2half(value);
  } else if (element == ElementType::kFp32) {
    *reinterpret_cast<float*>(to) = value;
  } else {
    *reinterpret_cast<__nv_bfloat16*>(to) = __float2bfloat16(value);
  }
}

}  // namespace

std::vector<float> to_floats(ElementType element, const void* values, int64_t count) {
  std::vector<float> floats(count);
  const auto* const from = static_cast<const char*>(values);
  const auto size = static_cast<int64_t>(cuda::size_bytes(element));
  for (int64_t i = 0; i < count; ++i) floats[i] = read(element, from + i * size);
  return floats;
}

std::vector<char> from_floats(ElementType element, const std::vector<float>& values) {
  const size_t size = cuda::size_bytes(element);
  std::vector<char> bytes(values.size() * size);
  for (size_t i = 0; i < values.size(); ++i) write(element, values[i], bytes.data() + i * size);
  return bytes;
}

int64_t packed_bytes(ElementType element, int64_t rows, int64_t columns) {
  const int64_t bytes = rows * round_up(columns, kColumnBlock) * cuda::size_bytes(element);
  return round_up(bytes, kExpertAlignment);
}

std::vector<char> pack_rows(ElementType element, const std::vector<float>& weight,
                            int64_t num_experts, int64_t rows, int64_t columns) {
  const int64_t expert = packed_bytes(element, rows, columns);
  const int64_t row_bytes = round_up(columns, kColumnBlock) * cuda::size_bytes(element);
  std::vector<char> packed(num_experts * expert, 0);
  for (int64_t e = 0; e < num_experts; ++e) {
    for (int64_t row = 0; row < rows; ++row) {
      const auto first = weight.begin() + (e * rows + row) * columns;
      const std::vector<char> bytes = from_floats(element, {first, first + columns});
      std::copy(bytes.begin(), bytes.end(), packed.begin() + e * expert + row * row_bytes);
    }
  }
  return packed;
}

std::vector<float> unpack_rows(ElementType element, const void* packed, int64_t num_experts,
                               int64_t rows, int64_t columns) {
  const int64_t row_bytes = round_up(columns, kColumnBlock) * cuda::size_bytes(element);
  std::vector<float> weight;
  for (int64_t e = 0; e < num_experts; ++e) {
    const char* expert =
        static_cast<const char*>(packed) + e * packed_bytes(element, rows, columns);
    for (int64_t row = 0; row < rows; ++row) {
      const std::vector<float> values = to_floats(element, expert + row * row_bytes, columns);
      weight.insert(weight.end(), values.begin(), values.end());
    }
  }
  return weight;
}

}  // namespace moe_export::test
