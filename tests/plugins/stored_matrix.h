#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "panel_layout.h"

namespace moe_export::test {

/// How weights are stored in a test.
struct Storage {
  const char* name;
  WeightType type;
  int64_t block_size;
  bool has_zero_point;
};

inline constexpr Storage kStorages[] = {
    {"fp32", WeightType::kFp32, 0, false},       {"fp16", WeightType::kFp16, 0, false},
    {"bf16", WeightType::kBf16, 0, false},       {"int8", WeightType::kInt8, 0, false},
    {"int4_32", WeightType::kInt4, 32, false},   {"int4_64_zero", WeightType::kInt4, 64, true},
    {"int4_128", WeightType::kInt4, 128, false}, {"int4_128_zero", WeightType::kInt4, 128, true},
    {"mxfp4", WeightType::kMxfp4, 32, false},
};

/// One expert's matrix: random codes as plugins/README.md packs them, and what they mean.
class StoredMatrix {
 public:
  StoredMatrix(const Storage& storage, int64_t rows, int64_t width, bool gated,
               std::mt19937& random)
      : layout_(
            cpu::PanelLayout::of(storage.type, storage.block_size, storage.has_zero_point, width)),
        gated_(gated),
        rows_(rows),
        random_(random),
        weights(rows * width),
        bytes(cpu::num_panels(gated ? rows / 2 : rows, gated) * layout_.panel_bytes, 0) {
    size_ = 1.0f / std::sqrt(static_cast<float>(width));
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t k = 0; k < width; ++k) weights[row * width + k] = draw(row, k);
    }
  }

 private:
  using Type = WeightType;

  /// Draws the weight of a row and column, writes it, and returns its value.
  float draw(int64_t row, int64_t k) {
    const int64_t height = gated_ ? 16 : 32, half = gated_ ? rows_ / 2 : rows_;
    const int64_t within = row % half;
    const int64_t lane = within % height + (gated_ && row >= half ? 16 : 0);
    char* const panel = bytes.data() + within / height * layout_.panel_bytes;
    switch (layout_.type) {
      case Type::kFp32:
        return put(panel + (k * 32 + lane) * 4, normal());
      case Type::kBf16:
        return bits_to_float(put<uint16_t>(pair(panel, k, lane), float_bits(normal()) >> 16) << 16);
      case Type::kFp16: {  // exponents 2^-8 to 2^-1, any fraction and sign
        const uint16_t fraction = random_() % 1024, exponent = 7 + random_() % 8;
        const uint16_t sign = random_() % 2;
        put<uint16_t>(pair(panel, k, lane), sign << 15 | exponent << 10 | fraction);
        return (sign ? -1.0f : 1.0f) * std::ldexp(1.0f + fraction / 1024.0f, exponent - 15);
      }
      case Type::kInt8: {
        const auto code = static_cast<int8_t>(static_cast<int>(random_() % 255) - 127);
        if (k == 0) put(panel + lane * 4, size_ / 64 * (1 + random_() % 2));
        put<int8_t>(panel + 128 + (k / 4 * 32 + lane) * 4 + k % 4, code);
        return get(panel + lane * 4) * code;
      }
      case Type::kInt4:
        return draw_int4(panel, lane, k);
      default:
        return draw_mxfp4(panel, lane, k);
    }
  }

  float draw_int4(char* panel, int64_t lane, int64_t k) {
    const int64_t block = layout_.block_size;
    char* const unit = panel + k / block * layout_.unit_bytes;
    if (k % block == 0) {
      put(unit + lane * 4, size_ / 8 * (1 + random_() % 3));
      if (layout_.has_zero_point) put<uint8_t>(unit + 128 + lane, random_() % 16);
    }
    const int zero = layout_.has_zero_point ? unit[128 + lane] : 8;
    const int code = put_nibble(unit + layout_.header_bytes, lane, k % block);
    return get(unit + lane * 4) * static_cast<float>(code - zero);
  }

  float draw_mxfp4(char* panel, int64_t lane, int64_t k) {
    constexpr float kValues[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    char* const unit = panel + k / 64 * layout_.unit_bytes;
    uint8_t* const exponent = reinterpret_cast<uint8_t*>(unit) + k % 64 / 32 * 32 + lane;
    if (k % 32 == 0) *exponent = static_cast<uint8_t>(118 + random_() % 6);
    const int code = put_nibble(unit + layout_.header_bytes, lane, k % 64);
    return std::ldexp(code & 8 ? -kValues[code & 7] : kValues[code & 7], *exponent - 127);
  }

  char* pair(char* panel, int64_t k, int64_t lane) {
    return panel + (k / 2 * 32 + lane) * 4 + k % 2 * 2;
  }
  int put_nibble(char* data, int64_t lane, int64_t k) {
    const int code = static_cast<int>(random_() % 16);
    data[(k / 4 * 16 + lane % 16) * 4 + k % 4] |= static_cast<char>(code << (lane < 16 ? 0 : 4));
    return code;
  }
  template <class T>
  T put(char* to, T value) {
    std::memcpy(to, &value, sizeof(value));
    return value;
  }
  static float get(const char* from) {
    float value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  float normal() { return std::normal_distribution<float>()(random_) * size_; }
  static uint32_t float_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
  }
  static float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }

  const cpu::PanelLayout layout_;
  const bool gated_;
  const int64_t rows_;
  std::mt19937& random_;
  float size_ = 0;

 public:
  std::vector<float> weights;  ///< [rows, width], as the codes say
  std::vector<char> bytes;     ///< packed
};

}  // namespace moe_export::test
