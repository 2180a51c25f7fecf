// Codes of quantized weights as unsigned bytes for dot products with int8 tokens: a weight is
// scale · (code - zero). Included by files compiled for AVX-512 with VNNI.
//
// A reader goes through a panel block by block. `begin_block` reads scales and zeros, `fetch` four
// columns of both halves, as 16 rows of 4 bytes each.
#pragma once
#include <immintrin.h>

#include "dot_tokens.inl"
#include "unroll.h"

namespace moe_export::cpu {
namespace {

struct BlockScales {
  __m512 scale[2];
  __m512i zero[2];
};

inline __m512 load_scales(const char* from) {
  return _mm512_loadu_ps(reinterpret_cast<const float*>(from));
}

struct Int8Codes {
  static constexpr int kZero = 128;
  const char* header;
  const char* at;

  Int8Codes(const PanelLayout& layout, const char* panel, int64_t column)
      : header(panel), at(panel + layout.header_bytes + column * kPanelRows) {}
  void begin_block(const PanelLayout&, BlockScales& block) {
    for (int h = 0; h < 2; ++h) {
      block.scale[h] = load_scales(header + h * 64);
      block.zero[h] = _mm512_set1_epi32(kZero);
    }
  }
  void fetch(__m512i (&codes)[2]) {
    const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
    for (int h = 0; h < 2; ++h) {
      codes[h] = _mm512_xor_si512(_mm512_loadu_si512(at + h * 64), flip);
    }
    at += 128;
  }
};

inline void split_nibbles(const char* at, __m512i (&codes)[2]) {
  const __m512i mask = _mm512_set1_epi8(15), both = _mm512_loadu_si512(at);
  codes[0] = _mm512_and_si512(both, mask);
  codes[1] = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
}

struct Int4Codes {
  static constexpr int kSymmetricZero = 8;
  const char* at;

  Int4Codes(const PanelLayout& layout, const char* panel, int64_t column)
      : at(panel + column / layout.unit_columns * layout.unit_bytes) {}

  void begin_block(const PanelLayout& layout, BlockScales& block) {
    const auto* const zeros = reinterpret_cast<const __m128i*>(at + 128);
    for (int h = 0; h < 2; ++h) {
      block.scale[h] = load_scales(at + h * 64);
      block.zero[h] = layout.has_zero_point ? _mm512_cvtepu8_epi32(_mm_loadu_si128(zeros + h))
                                            : _mm512_set1_epi32(kSymmetricZero);
    }
    at += layout.header_bytes;
  }
  void fetch(__m512i (&codes)[2]) {
    split_nibbles(at, codes);
    at += 64;
  }
};

/// Microscaling formats (OCP MX 1.0): twice an e2m1 value is a whole number, here 12 too large.
struct Mxfp4Codes {
  static constexpr int kZero = 12;
  const char* at;
  const char* exponents = nullptr;
  int64_t blocks_left = 0;

  Mxfp4Codes(const PanelLayout& layout, const char* panel, int64_t column)
      : at(panel + column / layout.unit_columns * layout.unit_bytes) {}

  void begin_block(const PanelLayout& layout, BlockScales& block) {
    if (blocks_left == 0) {
      exponents = at;
      at += layout.header_bytes;
      blocks_left = 2;
    }
    --blocks_left;
    for (int h = 0; h < 2; ++h, exponents += 16) {
      const auto* const bytes = reinterpret_cast<const __m128i*>(exponents);
      block.scale[h] = half_power(_mm512_cvtepu8_epi32(_mm_loadu_si128(bytes)));
      block.zero[h] = _mm512_set1_epi32(kZero);
    }
  }
  void fetch(__m512i (&codes)[2]) {
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    split_nibbles(at, codes);
    for (int h = 0; h < 2; ++h) codes[h] = _mm512_shuffle_epi8(table, codes[h]);
    at += 64;
  }
  /// 2^(byte - 127) / 2; 255 is NaN.
  static __m512 half_power(__m512i byte) {
    const __m512 power = _mm512_scalef_ps(
        _mm512_set1_ps(0.5f), _mm512_cvtepi32_ps(_mm512_sub_epi32(byte, _mm512_set1_epi32(127))));
    const __mmask16 nan = _mm512_cmpeq_epi32_mask(byte, _mm512_set1_epi32(255));
    return _mm512_mask_blend_ps(nan, power, _mm512_set1_ps(__builtin_nanf("")));
  }
};

/// acc += scale · token scale · (dots - what the zeros add): what VNNI and tiles both do, so that
/// their results agree to the bit.
inline __m512 add_block(__m512 acc, __m512i dots, __m512 scale, float token_scale) {
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots),
                         _mm512_mul_ps(scale, _mm512_set1_ps(token_scale)), acc);
}

/// Products of M tokens by VNNI.
template <class Codes, int M>
inline __attribute__((always_inline)) void multiply_codes(const PanelCall& call, float* out) {
  // Few tokens make few sums, which would wait for the latency of each product.
  constexpr int kChains = M == 1 ? 4 : M == 2 ? 2 : 1;
  const PanelLayout& layout = *call.layout;
  const int64_t block_columns = token_block(layout);
  const TokenBlock* meta = token_blocks(layout, call.tokens, M);
  Ahead ahead = *call.ahead;
  meta += call.begin / block_columns * M;
  Codes codes(layout, call.panel, call.begin);
  __m512 acc[M][2];
  for (int m = 0; m < M; ++m) load_sums(call, out, m, acc[m]);
  for (int64_t begin = call.begin; begin < call.end; begin += block_columns, meta += M) {
    const int64_t end = begin + block_columns < call.end ? begin + block_columns : call.end;
    BlockScales block;
    codes.begin_block(layout, block);
    __m512i dots[kChains][M][2] = {};
    for (int m = 0; m < M; ++m) {
      const __m512i sum = _mm512_set1_epi32(-meta[m].sum);
      for (int h = 0; h < 2; ++h) dots[0][m][h] = _mm512_mullo_epi32(block.zero[h], sum);
    }
    for (int64_t k = begin; k < end; k += 32) {
      ahead.step();
      const char* const tokens =
          call.tokens + k / kTokenChunk * (M * kTokenChunk) + k % kTokenChunk;
      MOE_EXPORT_UNROLL(8)
      for (int i = 0; i < 32; i += 4) {
        __m512i w[2];
        codes.fetch(w);
        MOE_EXPORT_UNROLL(8)
        for (int m = 0; m < M; ++m) {
          int32_t four;
          __builtin_memcpy(&four, tokens + m * kTokenChunk + i, sizeof(four));
          const __m512i x = _mm512_set1_epi32(four);
          __m512i(&sums)[2] = dots[i / 4 % kChains][m];
          for (int h = 0; h < 2; ++h) sums[h] = _mm512_dpbusd_epi32(sums[h], w[h], x);
        }
      }
    }
    for (int m = 0; m < M; ++m) {
      for (int h = 0; h < 2; ++h) {
        for (int c = 1; c < kChains; ++c) {
          dots[0][m][h] = _mm512_add_epi32(dots[0][m][h], dots[c][m][h]);
        }
        acc[m][h] = add_block(acc[m][h], dots[0][m][h], block.scale[h], meta[m].scale);
      }
    }
  }
  *call.ahead = ahead;
  for (int m = 0; m < M; ++m) {
    for (int h = 0; h < 2; ++h) _mm512_storeu_ps(out + m * kPanelRows + h * 16, acc[m][h]);
  }
}

/// Most tokens whose sums stay in registers.
constexpr int kVnniTile = MOE_EXPORT_TILE(6);

template <class Codes, int M = kVnniTile>
void multiply_by_vnni(const PanelCall& call, float* out) {
  if (call.num_tokens == M) return multiply_codes<Codes, M>(call, out);
  if constexpr (M > 1) multiply_by_vnni<Codes, M - 1>(call, out);
}

/// Steps of `multiply_by_vnni` at which it reads ahead.
inline int64_t num_vnni_steps(const PanelLayout& layout) { return layout.padded_width / 32; }

}  // namespace
}  // namespace moe_export::cpu
