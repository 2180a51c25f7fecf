// Arithmetic, logic and comparisons, on the bits of registers.
#pragma once
#include "formats.h"

namespace ptx {

/// What an instruction says beside its type.
struct Exact {
  static constexpr Rounding kRounding = rn;
  static constexpr bool kFlush = false, kSaturate = false, kNan = false, kRelu = false;
};
template <Rounding R, bool Flush, bool Saturate, bool Nan = false, bool Relu = false>
struct How {
  static constexpr Rounding kRounding = R;
  static constexpr bool kFlush = Flush, kSaturate = Saturate, kNan = Nan, kRelu = Relu;
};

template <class F>
inline constexpr bool kIsFloat = !std::is_integral_v<F>;

/// Subnormal numbers become zeros of their sign.
inline float flush(float value) {
  return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value;
}

template <class F, class H>
typename F::Value operand(typename F::Bits bits) {
  const auto value = F::decode(bits);
  if constexpr (H::kFlush && std::is_same_v<F, f32>) return flush(value);
  return value;
}

template <class F, class H, class Value>
typename F::Bits result(Value value) {
  if constexpr (H::kSaturate) value = value >= 0 ? (value > 1 ? Value(1) : value) : Value(0);
  if constexpr (H::kRelu) value = value < 0 ? Value(0) : value;
  typename F::Bits bits;
  if constexpr (std::is_same_v<F, f64>) {
    bits = F::encode(value);
  } else if constexpr (std::is_same_v<Value, double> || H::kRounding != rn) {
    bits = F::encode(static_cast<double>(value), H::kRounding);
  } else {
    bits = F::encode(value);
  }
  if constexpr (H::kFlush && std::is_same_v<F, f32>) return F::encode(flush(F::decode(bits)));
  return bits;
}

template <class T, class = void>
struct BitsOf {
  using Type = T;
};
template <class T>
struct BitsOf<T, std::void_t<typename T::Value>> {
  using Type = typename T::Bits;
};
template <class T>
struct BitsOf<T, std::void_t<typename T::Half>> {
  using Type = std::conditional_t<sizeof(typename T::Half::Bits) == 2, uint32_t, uint64_t>;
};
/// The unsigned integer that holds a T; an integer is itself.
template <class T>
using Bits = typename BitsOf<T>::Type;

/// Applies `function` to the halves of packed operands.
template <class P, class Function, class... Operands>
Bits<P> in_halves(Function function, Operands... operands) {
  using Half = typename P::Half::Bits;
  constexpr int kBits = 8 * sizeof(Half);
  const Bits<P> low = function(static_cast<Half>(operands)...);
  const Bits<P> high = function(static_cast<Half>(operands >> kBits)...);
  return low | high << kBits;
}

// a + b and a - b: single precision is exact in `odd_sum`, 16 bits are in float by rounding twice.

template <class T, class H = Exact>
Bits<T> add(Bits<T> a, Bits<T> b) {
  if constexpr (std::is_integral_v<T>) {
    const auto wide = static_cast<__int128>(a) + b;
    if constexpr (H::kSaturate) {
      constexpr T most = T(~std::make_unsigned_t<T>{0} >> 1), least = T(-most - 1);
      return wide > most ? most : wide < least ? least : T(wide);
    }
    return static_cast<T>(wide);
  } else if constexpr (IsPair<T>::value) {
    return in_halves<T>(add<typename T::Half, H>, a, b);
  } else {
    const auto x = operand<T, H>(a), y = operand<T, H>(b);
    if constexpr (H::kRounding == rn) return result<T, H>(x + y);
    return result<T, H>(odd_sum(x, y));
  }
}

template <class T>
Bits<T> flip_sign(Bits<T> a) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(-static_cast<__int128>(a));
  } else if constexpr (IsPair<T>::value) {
    return in_halves<T>(flip_sign<typename T::Half>, a);
  } else {
    return a ^ static_cast<Bits<T>>(Bits<T>{1} << (8 * sizeof(a) - 1));
  }
}

template <class T, class H = Exact>
Bits<T> sub(Bits<T> a, Bits<T> b) {
  if constexpr (std::is_integral_v<T>) {
    static_assert(!H::kSaturate);
    return static_cast<T>(static_cast<__int128>(a) - b);
  } else {
    return add<T, H>(a, flip_sign<T>(b));
  }
}

template <class T, class H = Exact>
Bits<T> mul(Bits<T> a, Bits<T> b) {
  if constexpr (IsPair<T>::value) {
    return in_halves<T>(mul<typename T::Half, H>, a, b);
  } else {
    const auto x = operand<T, H>(a), y = operand<T, H>(b);
    if constexpr (H::kRounding == rn) return result<T, H>(x * y);
    return result<T, H>(static_cast<double>(x) * y);
  }
}

template <class T, class H = Exact>
Bits<T> fma(Bits<T> a, Bits<T> b, Bits<T> c) {
  if constexpr (IsPair<T>::value) {
    return in_halves<T>(fma<typename T::Half, H>, a, b, c);
  } else {
    const auto x = operand<T, H>(a), y = operand<T, H>(b), z = operand<T, H>(c);
    if constexpr (std::is_same_v<T, f64> || (std::is_same_v<T, f32> && H::kRounding == rn)) {
      return result<T, H>(std::fma(x, y, z));
    } else {
      return result<T, H>(odd_sum(static_cast<double>(x) * y, z));  // the product is exact
    }
  }
}

// Products of integers

template <class T>
using Wide =
    std::conditional_t<sizeof(T) == 8,
                       std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>,
                       std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;

template <class T>
T mul_lo(T a, T b) {
  return static_cast<T>(static_cast<Wide<T>>(a) * static_cast<Wide<T>>(b));
}
template <class T>
T mul_hi(T a, T b) {
  return static_cast<T>((static_cast<Wide<T>>(a) * static_cast<Wide<T>>(b)) >> (8 * sizeof(T)));
}
/// Twice as many bits; the register takes what it has of them.
template <class T>
uint64_t mul_wide(T a, T b) {
  return static_cast<uint64_t>(static_cast<Wide<T>>(a) * static_cast<Wide<T>>(b));
}

// Quotients. PTX leaves a division of integers by zero open: it gives all ones here.

template <class T, class H = Exact>
Bits<T> div(Bits<T> a, Bits<T> b) {
  if constexpr (std::is_integral_v<T>) {
    if (b == 0) return static_cast<T>(-1);
    return static_cast<T>(static_cast<__int128>(a) / b);
  } else {
    const auto x = operand<T, H>(a), y = operand<T, H>(b);
    if constexpr (H::kRounding == rn) return result<T, H>(x / y);
    const double quotient = static_cast<double>(x) / y;
    return result<T, H>(round_to_odd(quotient, std::fma(-quotient, y, x) * (y < 0 ? -1 : 1)));
  }
}
template <class T>
T rem(T a, T b) {
  return b == 0 ? a : static_cast<T>(static_cast<__int128>(a) % b);
}

// Functions of one number. Approximations are computed exactly, then rounded.

template <class T, class H = Exact>
Bits<T> abs(Bits<T> a) {
  if constexpr (std::is_integral_v<T>) {
    return a < 0 ? flip_sign<T>(a) : a;
  } else if constexpr (IsPair<T>::value) {
    return in_halves<T>(abs<typename T::Half>, a);
  } else if constexpr (H::kFlush) {
    return result<T, H>(std::fabs(operand<T, H>(a)));
  } else {
    return a & static_cast<Bits<T>>(~(Bits<T>{1} << (8 * sizeof(a) - 1)));
  }
}
template <class T, class H = Exact>
Bits<T> neg(Bits<T> a) {
  if constexpr (H::kFlush) return result<T, H>(-operand<T, H>(a));
  return flip_sign<T>(a);
}
template <class T, class H, class Function>
Bits<T> apply(Function function, Bits<T> a) {
  if constexpr (IsPair<T>::value) {
    return in_halves<T>([&](uint16_t x) { return apply<typename T::Half, H>(function, x); }, a);
  } else if constexpr (std::is_same_v<T, f32>) {
    return result<T, H>(static_cast<float>(function(static_cast<double>(operand<T, H>(a)))));
  } else {
    return result<T, H>(function(static_cast<double>(operand<T, H>(a))));
  }
}
inline double exp2_of(double x) { return std::exp2(x); }
inline double log2_of(double x) { return std::log2(x); }
inline double sine_of(double x) { return std::sin(x); }
inline double cosine_of(double x) { return std::cos(x); }
inline double tanh_of(double x) { return std::tanh(x); }
inline double root_of(double x) { return std::sqrt(x); }
inline double inverse_root_of(double x) { return 1 / std::sqrt(x); }
inline double inverse_of(double x) { return 1 / x; }

// The smaller and the larger: of a number and NaN the number, unless .NaN says otherwise; -0 < +0.

template <class T, class H, bool Larger>
Bits<T> choose(Bits<T> a, Bits<T> b) {
  if constexpr (std::is_integral_v<T>) {
    return (a < b) != Larger ? a : b;
  } else if constexpr (IsPair<T>::value) {
    return in_halves<T>(choose<typename T::Half, H, Larger>, a, b);
  } else {
    const auto x = operand<T, H>(a), y = operand<T, H>(b);
    if (std::isnan(x) || std::isnan(y)) {
      if (H::kNan || (std::isnan(x) && std::isnan(y))) return result<T, H>(x + y);
      return result<T, H>(std::isnan(x) ? y : x);
    }
    const bool first = x == y ? std::signbit(x) : x < y;
    return result<T, H>(first != Larger ? x : y);
  }
}
template <class T, class H = Exact>
Bits<T> min(Bits<T> a, Bits<T> b) {
  return choose<T, H, false>(a, b);
}
template <class T, class H = Exact>
Bits<T> max(Bits<T> a, Bits<T> b) {
  return choose<T, H, true>(a, b);
}

// Bits

template <class T>
T shl(T a, uint32_t by) {
  return by >= 8 * sizeof(T) ? T{0} : static_cast<T>(static_cast<uint64_t>(a) << by);
}
template <class T>
T shr(T a, uint32_t by) {
  if (by >= 8 * sizeof(T)) return a < 0 ? static_cast<T>(-1) : T{0};
  return static_cast<T>(a >> by);
}
/// The 64 bits of `high` and `low`, shifted; `Wraps` takes `by` modulo 32, else 32 is the most.
template <bool Wraps>
uint32_t shf_l(uint32_t low, uint32_t high, uint32_t by) {
  const uint32_t n = Wraps ? by & 31 : by > 32 ? 32 : by;
  const uint64_t both = static_cast<uint64_t>(high) << 32 | low;
  return static_cast<uint32_t>(n == 32 ? low : (both << n) >> 32);
}
template <bool Wraps>
uint32_t shf_r(uint32_t low, uint32_t high, uint32_t by) {
  const uint32_t n = Wraps ? by & 31 : by > 32 ? 32 : by;
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> n);
}
/// `length` bits of `a` from bit `position` on; of signed types, the last one goes on to the left.
template <class T>
T bfe(T a, uint32_t position, uint32_t length) {
  using U = std::make_unsigned_t<T>;
  constexpr int kBits = 8 * sizeof(T);
  position &= 0xff;
  length &= 0xff;
  const bool negative =
      std::is_signed_v<T> && length > 0 &&
      (static_cast<U>(a) >> (position + length - 1 < kBits ? position + length - 1 : kBits - 1) &
       1);
  U bits = 0;
  for (uint32_t i = 0; i < kBits; ++i) {
    const bool inside = i < length && position + i < kBits;
    const bool bit = inside ? static_cast<U>(a) >> (position + i) & 1 : negative;
    bits |= static_cast<U>(bit) << i;
  }
  return static_cast<T>(bits);
}
/// `b` with `length` bits of `a` from bit `position` on.
template <class T>
T bfi(T a, T b, uint32_t position, uint32_t length) {
  position &= 0xff;
  length &= 0xff;
  T bits = b;
  for (uint32_t i = 0; i < length && position + i < 8 * sizeof(T); ++i) {
    const T bit = T{1} << (position + i);
    bits = (bits & ~bit) | (a >> i & 1 ? bit : 0);
  }
  return bits;
}
template <class T>
T brev(T a) {
  T bits = 0;
  for (uint32_t i = 0; i < 8 * sizeof(T); ++i) bits |= (a >> i & 1) << (8 * sizeof(T) - 1 - i);
  return bits;
}
template <class T>
uint32_t popc(T a) {
  return static_cast<uint32_t>(__builtin_popcountll(a));
}
template <class T>
uint32_t clz(T a) {
  return a == 0 ? 8 * sizeof(T) : static_cast<uint32_t>(__builtin_clzll(a)) - (64 - 8 * sizeof(T));
}
/// The highest bit that differs from the sign; all ones if there is none.
template <class T>
uint32_t bfind(T a) {
  using U = std::make_unsigned_t<T>;
  const U bits = a < 0 ? ~static_cast<U>(a) : static_cast<U>(a);
  return bits == 0 ? ~0u : 63 - static_cast<uint32_t>(__builtin_clzll(bits));
}
/// Any function of three bits: bit (a, b, c) of `table`.
inline uint32_t lop3(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t bits = 0;
  for (uint32_t i = 0; i < 8; ++i) {
    if (table >> i & 1) bits |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  }
  return bits;
}

/// Four bytes of the eight of `b` and `a`, chosen by nibbles; a nibble's high bit asks for the
/// byte's sign eight times.
inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t bits = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> (4 * i) & 15;
    auto byte = static_cast<uint8_t>(bytes >> (8 * (nibble & 7)));
    if (nibble & 8) byte = byte & 0x80 ? 0xff : 0;
    bits |= static_cast<uint32_t>(byte) << (8 * i);
  }
  return bits;
}
enum class PrmtMode { kF4e, kB4e, kRc8, kEcl, kEcr, kRc16 };
/// The named modes of prmt, as the selector that does the same.
template <PrmtMode Mode>
uint32_t prmt_selector(uint32_t control) {
  const uint32_t c = control & 3;
  switch (Mode) {
    case PrmtMode::kF4e:
      return 0x3210 + c * 0x1111;
    case PrmtMode::kB4e: {
      uint32_t selector = 0;
      for (uint32_t i = 0; i < 4; ++i) selector |= ((c + 8 - i) % 8) << (4 * i);
      return selector;
    }
    case PrmtMode::kRc8:
      return c * 0x1111;
    case PrmtMode::kEcl: {
      uint32_t selector = 0;
      for (uint32_t i = 0; i < 4; ++i) selector |= (i > c ? i : c) << (4 * i);
      return selector;
    }
    case PrmtMode::kEcr: {
      uint32_t selector = 0;
      for (uint32_t i = 0; i < 4; ++i) selector |= (i < c ? i : c) << (4 * i);
      return selector;
    }
    case PrmtMode::kRc16:
      return (c & 1) ? 0x3232 : 0x1010;
  }
}

// Comparisons

enum class Compare { eq, ne, lt, le, gt, ge, equ, neu, ltu, leu, gtu, geu, num, nan };

template <Compare C, class Value>
bool holds(Value x, Value y) {
  const bool unordered = x != x || y != y;
  switch (C) {
    case Compare::eq:
      return x == y;
    case Compare::ne:
      return !unordered && x != y;
    case Compare::lt:
      return x < y;
    case Compare::le:
      return x <= y;
    case Compare::gt:
      return x > y;
    case Compare::ge:
      return x >= y;
    case Compare::equ:
      return unordered || x == y;
    case Compare::neu:
      return unordered || x != y;
    case Compare::ltu:
      return unordered || x < y;
    case Compare::leu:
      return unordered || x <= y;
    case Compare::gtu:
      return unordered || x > y;
    case Compare::geu:
      return unordered || x >= y;
    case Compare::num:
      return !unordered;
    case Compare::nan:
      return unordered;
  }
}

template <Compare C, class T, class H = Exact>
bool compare(Bits<T> a, Bits<T> b) {
  if constexpr (std::is_integral_v<T>) {
    return holds<C, T>(a, b);
  } else {
    return holds<C>(operand<T, H>(a), operand<T, H>(b));
  }
}

}  // namespace ptx
