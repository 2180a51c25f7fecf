// Types of PTX: what the bits of a register stand for, and rounding to them.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace ptx {

using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using b8 = uint8_t;
using b16 = uint16_t;
using b32 = uint32_t;
using b64 = uint64_t;
using pred = bool;

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

/// Of results that lie between two numbers: to the nearest and even, toward zero, down, up, and to
/// the nearest and away from zero.
enum Rounding { rn, rz, rm, rp, rna };

/// `sum` with its last bit set where `error`, what is missing from it, is not zero: rounded to
/// fewer bits it gives what the exact sum would.
inline double round_to_odd(double sum, double error) {
  if (error == 0 || !std::isfinite(sum) || !std::isfinite(error)) return sum;
  if (bit_cast<uint64_t>(sum) & 1) return sum;
  return std::nextafter(sum, error > 0 ? INFINITY : -INFINITY);
}

/// a + b with what it lacks of the exact sum in its last bit.
inline double odd_sum(double a, double b) {
  const double sum = a + b, part = sum - a;
  return round_to_odd(sum, (a - (sum - part)) + (b - part));
}

/// A floating-point format of less than 32 bits with `Exponent` and `Mantissa` bits.
/// e4m3 has no infinity, and one NaN.
template <int Exponent, int Mantissa, bool HasInfinity>
struct SmallFloat {
  static constexpr int kBias = (1 << (Exponent - 1)) - 1;
  static constexpr uint32_t kAbove =
      HasInfinity ? ((1u << Exponent) - 1) << Mantissa : (1u << (Exponent + Mantissa)) - 1;
  static constexpr uint32_t kNan = HasInfinity ? (1u << (Exponent + Mantissa)) - 1 : kAbove;
  static constexpr uint32_t kSign = 1u << (Exponent + Mantissa);

  static float decode(uint32_t bits) {
    const uint32_t magnitude = bits & (kSign - 1);
    const int exponent = static_cast<int>(magnitude >> Mantissa);
    const auto mantissa = static_cast<float>(magnitude & ((1u << Mantissa) - 1));
    const float sign = bits & kSign ? -1.0f : 1.0f;
    if (HasInfinity ? magnitude > kAbove : magnitude == kAbove) return NAN;
    if (HasInfinity && magnitude == kAbove) return sign * INFINITY;
    if (exponent == 0) return sign * std::ldexp(mantissa, 1 - kBias - Mantissa);
    return sign * std::ldexp(mantissa + (1 << Mantissa), exponent - kBias - Mantissa);
  }

  static uint32_t encode(double value, Rounding rounding = rn, bool saturate = false) {
    if (std::isnan(value)) return kNan;
    const uint32_t sign = std::signbit(value) ? kSign : 0;
    const double magnitude = std::fabs(value);
    const uint32_t bits = std::isinf(magnitude) ? kAbove : round(magnitude, rounding);
    if (bits < kAbove) return sign | bits;
    if (saturate || (rounding == rz && !std::isinf(magnitude))) return sign | (kAbove - 1);
    return sign | kAbove;
  }

 private:
  /// Bits above `kAbove` where it is too large.
  static uint32_t round(double magnitude, Rounding rounding) {
    if (magnitude == 0) return 0;
    int exponent;
    std::frexp(magnitude, &exponent);
    if (exponent > kBias + 2) return kAbove;
    const int unit = (exponent < 2 - kBias ? 2 - kBias : exponent) - 1 - Mantissa;
    const double scaled = std::ldexp(magnitude, -unit);
    const double whole = rounding == rz    ? std::trunc(scaled)
                         : rounding == rna ? std::round(scaled)
                                           : std::nearbyint(scaled);
    const int biased = unit + Mantissa + kBias;  // of a whole with its leading bit
    const auto bits = (static_cast<int64_t>(biased - 1) << Mantissa) + static_cast<int64_t>(whole);
    return bits > static_cast<int64_t>(kAbove) ? kAbove : static_cast<uint32_t>(bits);
  }
};

using E4m3 = SmallFloat<4, 3, false>;
using E5m2 = SmallFloat<5, 2, true>;
using SlowF16 = SmallFloat<5, 10, true>;
using SlowBf16 = SmallFloat<8, 7, true>;

/// The formats that arithmetic takes: the bits of a register to a value, and back.
struct f32 {
  using Bits = uint32_t;
  using Value = float;
  static float decode(Bits bits) { return bit_cast<float>(bits); }
  static Bits encode(float value) {
    return std::isnan(value) ? 0x7fffffffu : bit_cast<Bits>(value);
  }
  static Bits encode(double value, Rounding rounding) {
    auto nearest = static_cast<float>(value);
    if (rounding != rn && std::isfinite(value)) {
      const bool down = rounding == rm || (rounding == rz && value > 0);
      if (down ? nearest > value : nearest < value) {
        nearest = std::nextafter(nearest, down ? -INFINITY : INFINITY);
      }
    }
    return encode(nearest);
  }
};
struct f64 {
  using Bits = uint64_t;
  using Value = double;
  static double decode(Bits bits) { return bit_cast<double>(bits); }
  static Bits encode(double value) { return bit_cast<Bits>(value); }
};
struct f16 {
  using Bits = uint16_t;
  using Value = float;
  static float decode(Bits bits) { return static_cast<float>(bit_cast<_Float16>(bits)); }
  static Bits encode(float value) {
    return std::isnan(value) ? 0x7fff : bit_cast<Bits>(static_cast<_Float16>(value));
  }
  static Bits encode(double value, Rounding rounding) {
    return static_cast<Bits>(SlowF16::encode(value, rounding));
  }
};
struct bf16 {
  using Bits = uint16_t;
  using Value = float;
  static float decode(Bits bits) { return bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
  static Bits encode(float value) {
    const auto bits = bit_cast<uint32_t>(value);
    return std::isnan(value) ? 0x7fff : static_cast<Bits>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  static Bits encode(double value, Rounding rounding) {
    return static_cast<Bits>(SlowBf16::encode(value, rounding));
  }
};

/// tf32 lies in the upper 19 bits of a float.
struct tf32 {
  using Bits = uint32_t;
  using Value = float;
  static float decode(Bits bits) { return bit_cast<float>(bits & ~0x1fffu); }
  static Bits encode(double value, Rounding rounding) {
    return SmallFloat<8, 10, true>::encode(value, rounding) << 13;
  }
};

/// Two numbers in a register, the first one in its lower half.
struct f16x2 {
  using Half = f16;
};
struct bf16x2 {
  using Half = bf16;
};
struct f32x2 {
  using Half = f32;
};

template <class T, class = void>
struct IsPair : std::false_type {};
template <class T>
struct IsPair<T, std::void_t<typename T::Half>> : std::true_type {};

}  // namespace ptx
