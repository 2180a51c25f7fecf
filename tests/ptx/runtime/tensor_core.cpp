#include "tensor_core.h"

#include <cmath>

#include "formats.h"
#include "kernel_memory.h"
#include "machine.h"
#include "memory.h"

namespace ptx {
namespace {

constexpr int kMostDepth = 32;  ///< of one instruction, for elements of one byte
constexpr uint32_t kAllLanes = ~0u;

int element_bytes(Element element) {
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
float decode(Element element, uint32_t word, int i) {
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

/// Puts the registers of an operand, 16 bytes of k for each two (`rows` 16) or one (8) of them,
/// where they belong: to[row][k].
void place_fragment(Element element, const uint32_t* registers, int count, int rows, uint32_t lane,
                    float (*to)[kMostDepth]) {
  const int per_word = 4 / element_bytes(element);
  const int words_per_row = rows / 8;
  for (int j = 0; j < count; ++j) {
    const auto row = static_cast<int>(lane / 4) + 8 * (j % words_per_row);
    const int k = (j / words_per_row) * 4 * per_word + static_cast<int>(lane % 4) * per_word;
    for (int i = 0; i < per_word; ++i) to[row][k + i] = decode(element, registers[j], i);
  }
}

void require_all_lanes(const Thread& thread, int line, uint32_t mask) {
  if (mask != kAllLanes) fault(thread, line, "lanes %08x of the warp have ended", ~mask);
}

// mma. in: 4 of a, 2 of b, 4 of c, types. out: 4 of d.

struct MmaTypes {
  Element a, b;
  Sum sum;
  int num_a;
};
constexpr int kB = 4, kC = 6, kTypes = 10;

uint32_t add_to(Sum sum, float product, const uint32_t* c, int i) {
  switch (sum) {
    case Sum::f32:
      return f32::encode(f32::decode(c[i]) + product);
    case Sum::s32:
      return c[i] + static_cast<uint32_t>(static_cast<int32_t>(product));
    case Sum::f16: {
      const float before = f16::decode(static_cast<uint16_t>(c[i / 2] >> (16 * (i % 2))));
      return f16::encode(before + product);
    }
  }
  return 0;
}

void mma_words(const Thread& thread, int line, uint32_t mask, WarpWords& words) {
  require_all_lanes(thread, line, mask);
  const uint32_t* const coded = words.in[0] + kTypes;
  const MmaTypes types = {static_cast<Element>(coded[0]), static_cast<Element>(coded[1]),
                          static_cast<Sum>(coded[2]), static_cast<int>(coded[3])};
  float a[16][kMostDepth], b[8][kMostDepth];
  for (uint32_t lane = 0; lane < kWarp; ++lane) {
    place_fragment(types.a, words.in[lane], types.num_a, 16, lane, a);
    place_fragment(types.b, words.in[lane] + kB, types.num_a / 2, 8, lane, b);
  }
  const int depth = types.num_a / 2 * 16 / element_bytes(types.a);
  for (uint32_t lane = 0; lane < kWarp; ++lane) {
    uint32_t d[4];
    for (int i = 0; i < 4; ++i) {
      const uint32_t row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
      float product = 0;
      for (int k = 0; k < depth; ++k) product += a[row][k] * b[column][k];
      d[i] = add_to(types.sum, product, words.in[lane] + kC, i);
    }
    if (types.sum == Sum::f16) {
      words.out[lane][0] = d[0] | d[1] << 16;
      words.out[lane][1] = d[2] | d[3] << 16;
    } else {
      for (int i = 0; i < 4; ++i) words.out[lane][i] = d[i];
    }
  }
}

// ldmatrix and stmatrix. in: the row that the lane names. out: two rows of each matrix: of the
// lane's first and second element.

void name_rows(const Thread&, WarpWords& words, bool transposed) {
  for (uint32_t lane = 0; lane < kWarp; ++lane) {
    for (uint32_t matrix = 0; matrix < 4; ++matrix) {
      for (uint32_t half = 0; half < 2; ++half) {
        const uint32_t row = transposed ? lane % 4 * 2 + half : lane / 4;
        words.out[lane][matrix * 2 + half] = words.in[matrix * 8 + row][0];
      }
    }
  }
}
void name_plain_rows(const Thread& thread, int line, uint32_t mask, WarpWords& words) {
  require_all_lanes(thread, line, mask);
  name_rows(thread, words, false);
}
void name_transposed_rows(const Thread& thread, int line, uint32_t mask, WarpWords& words) {
  require_all_lanes(thread, line, mask);
  name_rows(thread, words, true);
}

/// Where the lane's two elements of each matrix are, as offsets of shared memory.
void find_elements(Thread& thread, int line, bool transposed, int count, uint32_t offset,
                   uint32_t* elements) {
  if (thread.lane < 8 * static_cast<uint32_t>(count)) at_shared(thread, line, offset, 16);
  together(thread, line, kAllLanes, transposed ? name_transposed_rows : name_plain_rows, &offset, 1,
           elements, 2 * count);
  for (uint32_t i = 0; i < 2 * static_cast<uint32_t>(count); ++i) {
    elements[i] += 2 * (transposed ? thread.lane / 4 : thread.lane % 4 * 2 + i % 2);
  }
}

// wgmma. in: d, then a's registers, descriptors and the product's form. out: d.

constexpr int kA = 128, kDescriptors = 132, kForm = 136;

uint64_t join(const uint32_t* words) { return static_cast<uint64_t>(words[1]) << 32 | words[0]; }

/// A matrix in shared memory, as wgmma's descriptors say: 16 bytes lie together, and rows of
/// `swizzle_bytes` repeat after eight.
class SharedMatrix {
 public:
  SharedMatrix(const Thread& thread, int line, uint64_t descriptor, Element element,
               bool transposed)
      : thread_(thread),
        line_(line),
        element_(element),
        transposed_(transposed),
        start_((descriptor & 0x3fff) << 4),
        leading_((descriptor >> 16 & 0x3fff) << 4),
        stride_((descriptor >> 32 & 0x3fff) << 4) {
    constexpr uint32_t kSwizzles[] = {0, 128, 64, 32};
    swizzle_ = kSwizzles[descriptor >> 62];
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

void multiply(const float (*a)[kMostDepth], const float (*b)[kMostDepth],
              const GroupProduct& product, int depth, WarpWords& words) {
  const float scale = product.scale_a * product.scale_b;
  for (uint32_t lane = 0; lane < kWarp; ++lane) {
    for (int i = 0; i < product.columns / 2; ++i) {
      const uint32_t row = lane / 4 + 8 * (i / 2 % 2), column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      float sum = 0;
      for (int k = 0; k < depth; ++k) sum += a[row][k] * b[column][k];
      const float before = product.accumulates ? f32::decode(words.in[lane][i]) : 0.0f;
      words.out[lane][i] = f32::encode(before + scale * sum);
    }
  }
}

void wgmma_words(const Thread& thread, int line, uint32_t mask, WarpWords& words) {
  require_all_lanes(thread, line, mask);
  const uint32_t* const first = words.in[0];
  for (const auto& in : words.in) {
    for (int i = kDescriptors; i < WarpWords::kMost; ++i) {
      if (in[i] != first[i]) fault(thread, line, "wgmma differs among the lanes of a warp");
    }
  }
  const uint32_t* const form = first + kForm;
  const GroupProduct product = {static_cast<Element>(form[0]),
                                static_cast<int>(form[1]),
                                form[2] != 0,
                                form[3] & 1 ? -1.0f : 1.0f,
                                form[3] & 2 ? -1.0f : 1.0f,
                                (form[3] & 4) != 0,
                                (form[3] & 8) != 0};
  const bool a_in_registers = (form[3] & 16) != 0;
  float a[16][kMostDepth], b[256][kMostDepth];
  if (a_in_registers) {
    for (uint32_t lane = 0; lane < kWarp; ++lane) {
      place_fragment(product.element, words.in[lane] + kA, 4, 16, lane, a);
    }
  } else {
    const SharedMatrix matrix(thread, line, join(first + kDescriptors), product.element,
                              product.transposed_a);
    matrix.read(static_cast<int>(thread.tid / kWarp % 4 * 16), 16, a);
  }
  SharedMatrix(thread, line, join(first + kDescriptors + 2), product.element, product.transposed_b)
      .read(0, product.columns, b);
  multiply(a, b, product, 32 / element_bytes(product.element), words);
}

}  // namespace

void mma(Thread& thread, int line, Element a_type, Element b_type, Sum sum, int num_a,
         const uint32_t* a, const uint32_t* b, const uint32_t* c, uint32_t* d) {
  uint32_t in[kTypes + 4] = {};
  for (int i = 0; i < num_a; ++i) in[i] = a[i];
  for (int i = 0; i < num_a / 2; ++i) in[kB + i] = b[i];
  const int num_c = sum == Sum::f16 ? 2 : 4;
  for (int i = 0; i < num_c; ++i) in[kC + i] = c[i];
  in[kTypes] = static_cast<uint32_t>(a_type);
  in[kTypes + 1] = static_cast<uint32_t>(b_type);
  in[kTypes + 2] = static_cast<uint32_t>(sum);
  in[kTypes + 3] = static_cast<uint32_t>(num_a);
  together(thread, line, kAllLanes, mma_words, in, kTypes + 4, d, num_c);
}

void ldmatrix(Thread& thread, int line, bool transposed, int count, uint32_t offset, uint32_t* to) {
  uint32_t elements[8];
  find_elements(thread, line, transposed, count, offset, elements);
  for (int i = 0; i < count; ++i) {
    uint16_t halves[2];
    for (int half = 0; half < 2; ++half) {
      read_memory(thread.shared + elements[2 * i + half],
                  reinterpret_cast<unsigned char*>(&halves[half]), 2);
    }
    to[i] = halves[0] | static_cast<uint32_t>(halves[1]) << 16;
  }
}

void stmatrix(Thread& thread, int line, bool transposed, int count, uint32_t offset,
              const uint32_t* from) {
  uint32_t elements[8];
  find_elements(thread, line, transposed, count, offset, elements);
  for (int i = 0; i < 2 * count; ++i) {
    const auto half = static_cast<uint16_t>(from[i / 2] >> (16 * (i % 2)));
    write_memory(reinterpret_cast<const unsigned char*>(&half), thread.shared + elements[i], 2);
  }
}

void wgmma(Thread& thread, int line, const GroupProduct& product, const uint32_t* a_registers,
           uint64_t a_descriptor, uint64_t b_descriptor, uint32_t* d) {
  uint32_t in[WarpWords::kMost] = {};
  for (int i = 0; i < product.columns / 2; ++i) in[i] = d[i];
  if (a_registers != nullptr) {
    for (int i = 0; i < 4; ++i) in[kA + i] = a_registers[i];
  }
  in[kDescriptors] = static_cast<uint32_t>(a_descriptor);
  in[kDescriptors + 1] = static_cast<uint32_t>(a_descriptor >> 32);
  in[kDescriptors + 2] = static_cast<uint32_t>(b_descriptor);
  in[kDescriptors + 3] = static_cast<uint32_t>(b_descriptor >> 32);
  in[kForm] = static_cast<uint32_t>(product.element);
  in[kForm + 1] = static_cast<uint32_t>(product.columns);
  in[kForm + 2] = product.accumulates;
  in[kForm + 3] = (product.scale_a < 0) | (product.scale_b < 0) << 1 | product.transposed_a << 2 |
                  product.transposed_b << 3 | (a_registers != nullptr) << 4;
  together(thread, line, kAllLanes, wgmma_words, in, WarpWords::kMost, d, product.columns / 2);
}

}  // namespace ptx
