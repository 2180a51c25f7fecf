// Tokens for dot-product instructions, AVX-512 with BF16: included by files compiled for it.
//
// bfloat16: a tile of M tokens is [columns / 32][M][32].
// int8: [columns / 64][M][64], then for each block of columns [blocks][M] scales and sums; a
// token's value is scale · code.
#pragma once
#include <immintrin.h>

#include "panel_kernels.h"

namespace moe_export::cpu {
namespace {

/// Bytes of a token in one chunk, for either type.
constexpr int64_t kTokenChunk = 64;
/// Columns that share a token's scale where a weight has one scale for its row.
constexpr int64_t kRowScaleBlock = 128;

/// Columns of a token that share a scale.
inline int64_t token_block(const PanelLayout& layout) {
  return layout.block_size > 0 ? layout.block_size : kRowScaleBlock;
}
inline int64_t num_token_blocks(const PanelLayout& layout) {
  return round_up(layout.padded_width, token_block(layout)) / token_block(layout);
}

struct TokenBlock {
  float scale;
  int32_t sum;  ///< of the codes
};

/// The sums that a call goes on with: those of the columns before its own.
inline void load_sums(const PanelCall& call, const float* out, int64_t token, __m512 (&sums)[2]) {
  for (int h = 0; h < 2; ++h) {
    sums[h] =
        call.begin == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(out + token * kPanelRows + h * 16);
  }
}

inline __mmask16 first_lanes(int64_t count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

inline __m512 load_weighted(const PanelLayout& layout, const float* row, __m512 weight, int64_t k) {
  const __mmask16 inside = first_lanes(layout.width - k);
  return _mm512_mul_ps(_mm512_maskz_loadu_ps(inside, row + (inside ? k : 0)), weight);
}

inline int64_t bf16_token_bytes(const PanelLayout& layout) { return layout.padded_width * 2; }

inline void pack_bf16_token(const PanelLayout& layout, const float* row, float weight,
                            int64_t place, int64_t tile_size, char* tile) {
  const __m512 factor = _mm512_set1_ps(weight);
  char* chunk = tile + place * kTokenChunk;
  for (int64_t k = 0; k < layout.padded_width; k += 32, chunk += tile_size * kTokenChunk) {
    const __m512bh both = _mm512_cvtne2ps_pbh(load_weighted(layout, row, factor, k + 16),
                                              load_weighted(layout, row, factor, k));
    _mm512_storeu_si512(chunk, (__m512i)both);
  }
}

/// Copies chunks that follow one another to a place in a tile.
inline void place_chunks(const char* packed, int64_t bytes, int64_t place, int64_t tile_size,
                         char* tile) {
  char* to = tile + place * kTokenChunk;
  for (int64_t b = 0; b < bytes; b += kTokenChunk, to += tile_size * kTokenChunk) {
    _mm512_storeu_si512(to, _mm512_loadu_si512(packed + b));
  }
}

inline void place_bf16_token(const PanelLayout& layout, const char* packed, int64_t place,
                             int64_t tile_size, char* tile) {
  place_chunks(packed, bf16_token_bytes(layout), place, tile_size, tile);
}

inline int64_t int8_token_bytes(const PanelLayout& layout) {
  return layout.padded_width + num_token_blocks(layout) * static_cast<int64_t>(sizeof(TokenBlock));
}

inline const TokenBlock* token_blocks(const PanelLayout& layout, const char* tile,
                                      int64_t tile_size) {
  return reinterpret_cast<const TokenBlock*>(tile + layout.padded_width * tile_size);
}

/// Quantizes [begin, end) of a row; a block with a value that is not finite gets the scale NaN.
inline TokenBlock quantize_block(const PanelLayout& layout, const float* row, __m512 weight,
                                 int64_t begin, int64_t end, int64_t chunk_stride, char* codes) {
  __m512 largest = _mm512_setzero_ps(), zeros = _mm512_setzero_ps();
  for (int64_t k = begin; k < end; k += 16) {
    const __m512 x = load_weighted(layout, row, weight, k);
    largest = _mm512_max_ps(_mm512_abs_ps(x), largest);
    zeros = _mm512_fmadd_ps(x, _mm512_setzero_ps(), zeros);  // NaN from what is not finite
  }
  const float top = _mm512_reduce_max_ps(largest), finite = _mm512_reduce_add_ps(zeros);
  const __m512 inverse = _mm512_set1_ps(top > 1e-36f ? 127.0f / top : 0.0f);
  const __mmask16 kept = finite == 0.0f ? 0xffff : 0;
  __m512i sum = _mm512_setzero_si512();
  for (int64_t k = begin; k < end; k += 16) {
    const __m512 x = _mm512_maskz_mul_ps(kept, load_weighted(layout, row, weight, k), inverse);
    const __m512i code = _mm512_cvtps_epi32(x);
    sum = _mm512_add_epi32(sum, code);
    char* const to = codes + k / kTokenChunk * chunk_stride + k % kTokenChunk;
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtsepi32_epi8(code));
  }
  return {top / 127.0f + finite, _mm512_reduce_add_epi32(sum)};
}

inline void pack_int8_token(const PanelLayout& layout, const float* row, float weight,
                            int64_t place, int64_t tile_size, char* tile) {
  const int64_t block = token_block(layout);
  auto* meta = const_cast<TokenBlock*>(token_blocks(layout, tile, tile_size)) + place;
  for (int64_t begin = 0; begin < layout.padded_width; begin += block, meta += tile_size) {
    const int64_t end = begin + block < layout.padded_width ? begin + block : layout.padded_width;
    *meta = quantize_block(layout, row, _mm512_set1_ps(weight), begin, end, tile_size * kTokenChunk,
                           tile + place * kTokenChunk);
  }
}

inline void place_int8_token(const PanelLayout& layout, const char* packed, int64_t place,
                             int64_t tile_size, char* tile) {
  place_chunks(packed, layout.padded_width, place, tile_size, tile);
  const TokenBlock* const from = token_blocks(layout, packed, 1);
  auto* const to = const_cast<TokenBlock*>(token_blocks(layout, tile, tile_size)) + place;
  for (int64_t b = 0; b < num_token_blocks(layout); ++b) to[b * tile_size] = from[b];
}

}  // namespace
}  // namespace moe_export::cpu
