// cvt: from the bits of one type to those of another.
#pragma once
#include <limits>

#include "arithmetic.h"

namespace ptx {

/// Rounding to whole numbers: to the nearest and even, toward zero, down, up.
enum class Whole { rni, rzi, rmi, rpi };

template <Whole W, class Value>
Value to_whole(Value value) {
  switch (W) {
    case Whole::rni:
      return std::nearbyint(value);
    case Whole::rzi:
      return std::trunc(value);
    case Whole::rmi:
      return std::floor(value);
    case Whole::rpi:
      return std::ceil(value);
  }
}

template <class To, class From, bool Saturate>
To integer_to_integer(From from) {
  if constexpr (Saturate) {
    const auto wide = static_cast<__int128>(from);
    constexpr __int128 most = std::numeric_limits<To>::max(),
                       least = std::numeric_limits<To>::min();
    return static_cast<To>(wide > most ? most : wide < least ? least : wide);
  }
  return static_cast<To>(from);
}

/// Outside of its range the nearest end of it; NaN gives 0.
template <class To, class From, Whole W, class H = Exact>
To float_to_integer(Bits<From> from) {
  const double value = to_whole<W>(static_cast<double>(operand<From, H>(from)));
  if (std::isnan(value)) return 0;
  constexpr To most = std::numeric_limits<To>::max(), least = std::numeric_limits<To>::min();
  if (value >= std::ldexp(1.0, std::numeric_limits<To>::digits)) return most;
  if (value <= static_cast<double>(least)) return least;
  return static_cast<To>(value);
}

template <class To, class From, class H = Exact>
Bits<To> integer_to_float(From from) {
  if constexpr (sizeof(From) == 8 && std::is_same_v<To, f32>) {
    static_assert(H::kRounding == rn);
    return result<To, H>(static_cast<float>(from));
  } else {
    return result<To, H>(static_cast<double>(from));
  }
}

template <class To, class From, class H = Exact>
Bits<To> float_to_float(Bits<From> from) {
  const auto value = operand<From, H>(from);
  if constexpr (std::is_same_v<To, f64>) return result<To, H>(static_cast<double>(value));
  return result<To, H>(value);
}

template <class F, Whole W, class H = Exact>
Bits<F> float_to_whole(Bits<F> from) {
  return result<F, H>(to_whole<W>(operand<F, H>(from)));
}

template <Rounding R>
uint32_t float_to_tf32(uint32_t from) {
  return tf32::encode(f32::decode(from), R);
}

/// Two floats to a register; the first one is the upper half.
template <class P, class H = Exact>
uint32_t floats_to_pair(uint32_t high, uint32_t low) {
  using Half = typename P::Half;
  return static_cast<uint32_t>(float_to_float<Half, f32, H>(high)) << 16 |
         float_to_float<Half, f32, H>(low);
}

/// Two floats to two bytes; the first one is the upper byte. Finite values stay finite.
template <class Small, bool Relu>
uint16_t floats_to_bytes(uint32_t high, uint32_t low) {
  const auto encode = [](uint32_t bits) {
    const float value = f32::decode(bits);
    return Small::encode(Relu && value < 0 ? 0.0 : value, rn, true);
  };
  return static_cast<uint16_t>(encode(high) << 8 | encode(low));
}

/// Two bytes to two numbers of 16 bits.
template <class P, class Small>
uint32_t bytes_to_pair(uint16_t bytes) {
  using Half = typename P::Half;
  return static_cast<uint32_t>(Half::encode(Small::decode(bytes >> 8))) << 16 |
         Half::encode(Small::decode(bytes & 0xff));
}

/// Two numbers of 16 bits to two bytes.
template <class Small, class P, bool Relu>
uint16_t pair_to_bytes(uint32_t pair) {
  using Half = typename P::Half;
  return floats_to_bytes<Small, Relu>(bit_cast<uint32_t>(Half::decode(pair >> 16)),
                                      bit_cast<uint32_t>(Half::decode(pair & 0xffff)));
}

}  // namespace ptx
