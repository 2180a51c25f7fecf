// Dot products of bfloat16 (AVX512_BF16) and of int8 (AVX512_VNNI).
#include "dot_codes.inl"
#include "unroll.h"

namespace moe_export::cpu {
namespace {

constexpr int kBf16Tile = MOE_EXPORT_TILE(12);
constexpr int64_t kBf16Columns = 32;

template <int M>
inline __attribute__((always_inline)) void multiply_pairs(const PanelCall& call, float* out) {
  __m512 acc[M][2];
  MOE_EXPORT_UNROLL(16)
  for (int m = 0; m < M; ++m) load_sums(call, out, m, acc[m]);
  Ahead ahead = *call.ahead;
  const char* weights = call.panel + call.begin / 2 * 128;
  const char* tokens = call.tokens + call.begin / kBf16Columns * M * kTokenChunk;
  for (int64_t k = call.begin; k < call.end; k += kBf16Columns, tokens += M * kTokenChunk) {
    ahead.step();
    MOE_EXPORT_UNROLL(16)
    for (int pair = 0; pair < 16; ++pair, weights += 128) {
      const __m512bh w0 = (__m512bh)_mm512_loadu_si512(weights);
      const __m512bh w1 = (__m512bh)_mm512_loadu_si512(weights + 64);
      MOE_EXPORT_UNROLL(16)
      for (int m = 0; m < M; ++m) {
        int32_t two;
        __builtin_memcpy(&two, tokens + m * kTokenChunk + pair * 4, sizeof(two));
        const __m512bh x = (__m512bh)_mm512_set1_epi32(two);
        acc[m][0] = _mm512_dpbf16_ps(acc[m][0], w0, x);
        acc[m][1] = _mm512_dpbf16_ps(acc[m][1], w1, x);
      }
    }
  }
  *call.ahead = ahead;
  for (int m = 0; m < M; ++m) {
    for (int h = 0; h < 2; ++h) _mm512_storeu_ps(out + m * kPanelRows + h * 16, acc[m][h]);
  }
}

template <int M = kBf16Tile>
void multiply_bf16(const PanelCall& call, float* out) {
  if (call.num_tokens == M) return multiply_pairs<M>(call, out);
  if constexpr (M > 1) multiply_bf16<M - 1>(call, out);
}

int64_t num_bf16_steps(const PanelLayout& layout) { return layout.padded_width / kBf16Columns; }
int64_t no_scratch(const PanelLayout&) { return 0; }
void nothing() {}

constexpr PanelKernels kBf16Kernels = {kBf16Tile,        256,
                                       bf16_token_bytes, no_scratch,
                                       num_bf16_steps,   pack_bf16_token,
                                       place_bf16_token, multiply_bf16<>,
                                       nothing,          nothing};

template <class Codes>
constexpr PanelKernels kVnniKernels = {kVnniTile,        512,
                                       int8_token_bytes, no_scratch,
                                       num_vnni_steps,   pack_int8_token,
                                       place_int8_token, multiply_by_vnni<Codes>,
                                       nothing,          nothing};

}  // namespace

const PanelKernels* avx512_bf16_panel_kernels(WeightType type) {
  switch (type) {
    case WeightType::kBf16:
      return &kBf16Kernels;
    case WeightType::kInt8:
      return &kVnniKernels<Int8Codes>;
    case WeightType::kInt4:
      return &kVnniKernels<Int4Codes>;
    case WeightType::kMxfp4:
      return &kVnniKernels<Mxfp4Codes>;
    default:
      return nullptr;
  }
}

}  // namespace moe_export::cpu
