// Packed weights to float32, in vector extensions. A decoder reads a panel from its begin to its
// end for kLanes rows of each half, those from `lane` on: `begin_unit` reads a header, `fetch` the
// next kGroup columns, `column` turns one of those into a vector for each half.
#pragma once
#include "panel_layout.h"
#include "vectors.inl"

namespace moe_export::cpu {
namespace {

constexpr int kHalf = kPanelRows / 2;
/// Bytes of a lane: one float, two columns of 16 bits, four of 8, or four of 4 bits in both halves.
constexpr int kLaneBytes = 4;

using VecBytes = uint8_t __attribute__((vector_size(kLanes)));
using VecBytesUnaligned = uint8_t __attribute__((vector_size(kLanes), aligned(1), may_alias));

inline VecInt load_ints(const char* from) {
  return *reinterpret_cast<const VecIntUnaligned*>(from);
}
inline VecInt load_bytes(const char* from) {
  const VecBytes bytes = *reinterpret_cast<const VecBytesUnaligned*>(from);
  return __builtin_convertvector(bytes, VecInt);
}
inline Vec load_floats(const char* from) { return (Vec)load_ints(from); }
inline Vec to_floats(VecInt values) { return __builtin_convertvector(values, Vec); }

/// Where a decoder is. `kHalves` halves of a panel lie behind each other, or in the same bytes.
template <int kHalves>
struct PanelReader {
  const char* unit;
  int lane;
  const char* at = nullptr;
  VecInt raw[kHalves] = {};

  void begin_unit(const PanelLayout& layout) {
    at = unit + layout.header_bytes + lane * kLaneBytes;
    unit += layout.unit_bytes;
  }
  void fetch() {
    for (int h = 0; h < kHalves; ++h) raw[h] = load_ints(at + h * kHalf * kLaneBytes);
    at += kHalves * kHalf * kLaneBytes;
  }
};

struct Fp32Weights : PanelReader<2> {
  static constexpr int kGroup = 1;
  void column(int, Vec (&w)[2]) const {
    for (int h = 0; h < 2; ++h) w[h] = (Vec)raw[h];
  }
};

struct Bf16Weights : PanelReader<2> {
  static constexpr int kGroup = 2;
  void column(int j, Vec (&w)[2]) const {
    for (int h = 0; h < 2; ++h) w[h] = (Vec)(j == 0 ? raw[h] << 16 : raw[h] & ~0xffff);
  }
};

struct Fp16Weights : PanelReader<2> {
  static constexpr int kGroup = 2;
  void column(int j, Vec (&w)[2]) const {
    for (int h = 0; h < 2; ++h) {
      const VecInt half = j == 0 ? raw[h] : raw[h] >> 16;
      // Exponent and fraction in float32's places; the factor moves the exponent's bias.
      const Vec magnitude = (Vec)((half & 0x7fff) << 13) * 0x1p112f;
      w[h] = (Vec)((VecInt)magnitude | (half & 0x8000) << 16);
    }
  }
};

struct Int8Weights : PanelReader<2> {
  static constexpr int kGroup = 4;
  Vec scale[2] = {};

  void begin_unit(const PanelLayout& layout) {
    const char* const scales = unit + lane * sizeof(float);
    for (int h = 0; h < 2; ++h) scale[h] = load_floats(scales + h * kHalf * sizeof(float));
    PanelReader::begin_unit(layout);
  }
  void column(int j, Vec (&w)[2]) const {
    for (int h = 0; h < 2; ++h) w[h] = to_floats(raw[h] << (24 - 8 * j) >> 24) * scale[h];
  }
};

struct Int4Weights : PanelReader<1> {
  static constexpr int kGroup = 4;
  static constexpr int kSymmetricZero = 8;
  Vec scale[2] = {};
  VecInt zero[2] = {};

  void begin_unit(const PanelLayout& layout) {
    const char* const zeros = unit + kPanelRows * sizeof(float) + lane;
    for (int h = 0; h < 2; ++h) {
      scale[h] = load_floats(unit + (lane + h * kHalf) * sizeof(float));
      zero[h] = layout.has_zero_point ? load_bytes(zeros + h * kHalf) : VecInt{} + kSymmetricZero;
    }
    PanelReader::begin_unit(layout);
  }
  void column(int j, Vec (&w)[2]) const {
    for (int h = 0; h < 2; ++h) {
      w[h] = to_floats((raw[0] >> (8 * j + 4 * h) & 15) - zero[h]) * scale[h];
    }
  }
};

/// Microscaling formats (OCP MX 1.0): e2m1 with one e8m0 scale for 32 columns.
struct Mxfp4Weights : PanelReader<1> {
  static constexpr int kGroup = 4;
  const char* scales = nullptr;
  int columns_left = 0;
  Vec scale[2] = {};

  void begin_unit(const PanelLayout& layout) {
    scales = unit + lane;
    columns_left = 0;
    PanelReader::begin_unit(layout);
  }
  void fetch() {
    if (columns_left == 0) {
      for (int h = 0; h < 2; ++h) scale[h] = half_power(load_bytes(scales + h * kHalf));
      scales += kPanelRows;
      columns_left = kMxfp4Block;
    }
    columns_left -= kGroup;
    PanelReader::fetch();
  }
  void column(int j, Vec (&w)[2]) const {
    for (int h = 0; h < 2; ++h) {
      const VecInt code = raw[0] >> (8 * j + 4 * h);
      const VecInt exponent = code >> 1 & 3, fraction = code & 1;
      // Twice the value: 0, 1, 2, 3, 4, 6, 8, 12.
      const VecInt twice = exponent > 0 ? (2 | fraction) << (exponent + (exponent > 0)) : fraction;
      w[h] = to_floats((code & 8) != 0 ? -twice : twice) * scale[h];
    }
  }
  /// 2^(byte - 127) / 2; 255 is NaN.
  static Vec half_power(VecInt byte) {
    const VecInt tiny = byte > 0 ? VecInt{} + (1 << 22) : VecInt{} + (1 << 21);
    const VecInt bits = byte > 1 ? (byte - 1) << 23 : tiny;
    return (Vec)(byte == 255 ? VecInt{} + 0x7fc00000 : bits);
  }
};

}  // namespace
}  // namespace moe_export::cpu
