// Operands of matrix instructions, in registers and in shared memory.
#pragma once
#include <cmath>

#include "formats.h"
#include "kernel_memory.h"
#include "memory.h"
#include "tensor_core.h"

namespace ptx {

constexpr int kMostDepth = 32;  ///< k of one instruction, for elements of one byte

inline int element_bytes(Element element) {
  switch (element) {
    case Element::tf32:
      return 4;
    case Element::f16:
    case Element::bf16:
      return 2;
    default:
      return 1;
  }
}

/// Element `i` of the four bytes of a register.
inline float decode(Element element, uint32_t word, int i) {
  switch (element) {
    case Element::s8:
      return static_cast<int8_t>(word >> (8 * i));
    case Element::u8:
      return static_cast<uint8_t>(word >> (8 * i));
    case Element::e4m3:
      return E4m3::decode(word >> (8 * i) & 0xff);
    case Element::e5m2:
      return E5m2::decode(word >> (8 * i) & 0xff);
    case Element::f16:
      return f16::decode(static_cast<uint16_t>(word >> (16 * i)));
    case Element::bf16:
      return bf16::decode(static_cast<uint16_t>(word >> (16 * i)));
    case Element::tf32:
      return tf32::decode(word);
  }
  return NAN;
}

constexpr uint32_t kAllLanes = ~0u;

/// Puts the registers of an operand, 16 bytes of k for each two (`rows` 16) or one (8) of them,
/// where they belong: to[row][k].
inline void place_fragment(Element element, const uint32_t* registers, int count, int rows,
                           uint32_t lane, float (*to)[kMostDepth]) {
  const int per_word = 4 / element_bytes(element);
  const int words_per_row = rows / 8;
  for (int j = 0; j < count; ++j) {
    const auto row = static_cast<int>(lane / 4) + 8 * (j % words_per_row);
    const int k = (j / words_per_row) * 4 * per_word + static_cast<int>(lane % 4) * per_word;
    for (int i = 0; i < per_word; ++i) to[row][k + i] = decode(element, registers[j], i);
  }
}

inline void require_all_lanes(const Thread& thread, int line, uint32_t mask) {
  if (mask != kAllLanes) fault(thread, line, "lanes %08x of the warp have ended", ~mask);
}

/// A matrix in shared memory, as the descriptors of wgmma and tcgen05.mma say: 16 bytes lie
/// together, and rows of `swizzle_bytes` repeat after eight.
class SharedMatrix {
 public:
  /// @param swizzle_bytes that the descriptor asks for: its code is another one on each machine.
  SharedMatrix(const Thread& thread, int line, uint64_t descriptor, uint32_t swizzle_bytes,
               Element element, bool transposed)
      : thread_(thread),
        line_(line),
        element_(element),
        transposed_(transposed),
        start_((descriptor & 0x3fff) << 4),
        leading_((descriptor >> 16 & 0x3fff) << 4),
        stride_((descriptor >> 32 & 0x3fff) << 4),
        swizzle_(swizzle_bytes) {
    if (descriptor >> 49 & 7) fault(thread, line, "descriptor with a base offset");
  }

  /// Rows from `first` on: to[row][k].
  void read(int first, int rows, float (*to)[kMostDepth]) const {
    if (transposed_) {
      read_transposed(first, rows, to);
    } else {
      read_plain(first, rows, to);
    }
  }

 private:
  static constexpr int kChunk = 16;

  int chunk_elements() const { return kChunk / element_bytes(element_); }

  void read_plain(int first, int rows, float (*to)[kMostDepth]) const {
    for (int row = 0; row < rows; ++row) {
      const auto r = static_cast<uint32_t>(first + row);
      for (uint32_t chunk = 0; chunk < 2; ++chunk) {
        const uint32_t at = swizzle_ == 0 ? r / 8 * stride_ + r % 8 * kChunk + chunk * leading_
                                          : r / 8 * stride_ + r % 8 * swizzle_ + chunk * kChunk;
        read_chunk(at, [&](int i) -> float& { return to[row][chunk * chunk_elements() + i]; });
      }
    }
  }

  /// Only of 16-bit elements: 16 of k.
  void read_transposed(int first, int rows, float (*to)[kMostDepth]) const {
    if (element_bytes(element_) != 2) fault(thread_, line_, "transposed operand not of 16 bits");
    for (uint32_t k = 0; k < 16; ++k) {
      for (int row = 0; row < rows; row += 8) {
        const auto chunk = static_cast<uint32_t>(first + row) / 8;
        const uint32_t chunks = swizzle_ / kChunk;  // of a row
        const uint32_t at = swizzle_ == 0 ? chunk * stride_ + k % 8 * kChunk + k / 8 * leading_
                                          : chunk / chunks * leading_ + chunk % chunks * kChunk +
                                                k % 8 * swizzle_ + k / 8 * stride_;
        read_chunk(at, [&](int i) -> float& { return to[row + i][k]; });
      }
    }
  }

  template <class Place>
  void read_chunk(uint32_t at, Place place) const {
    uint32_t offset = start_ + at;
    if (swizzle_ != 0) offset ^= offset >> 3 & (swizzle_ - kChunk);
    alignas(16) uint32_t words[4];
    read_memory(at_shared(thread_, line_, offset, kChunk), reinterpret_cast<unsigned char*>(words),
                kChunk);
    const int per_word = 4 / element_bytes(element_);
    for (int i = 0; i < 4 * per_word; ++i) {
      place(i) = decode(element_, words[i / per_word], i % per_word);
    }
  }

  const Thread& thread_;
  int line_;
  Element element_;
  bool transposed_;
  uint32_t start_, leading_, stride_, swizzle_;
};

}  // namespace ptx
