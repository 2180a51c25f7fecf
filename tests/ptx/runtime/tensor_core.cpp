#include "tensor_core.h"

#include "formats.h"
#include "machine.h"
#include "memory.h"
#include "operands.h"

namespace ptx {
namespace {

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

}  // namespace ptx
