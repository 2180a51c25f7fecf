// Kernels for packed weights that decode them to float32; compiled once per instruction set. The
// including file defines MOE_EXPORT_LANES and MOE_EXPORT_PANEL_TILE. Tokens stay float32: a tile of
// M of them is [columns / kChunk][M][kChunk].
#include "expert_kernels.h"
#include "panel_decoders.inl"
#include "panel_kernels.h"
#include "unroll.h"

namespace moe_export::cpu {
namespace {

constexpr int kMaxPanelTile = MOE_EXPORT_TILE(MOE_EXPORT_PANEL_TILE);

int64_t float_token_bytes(const PanelLayout& layout) {
  return layout.padded_width * static_cast<int64_t>(sizeof(float));
}
int64_t no_scratch(const PanelLayout&) { return 0; }
int64_t num_chunks(const PanelLayout& layout) { return layout.padded_width / kChunk; }

void pack_float_token(const PanelLayout& layout, const float* row, float weight, int64_t place,
                      int64_t tile_size, char* tile) {
  float* chunk = reinterpret_cast<float*>(tile) + place * kChunk;
  for (int64_t k = 0; k < layout.padded_width; k += kChunk, chunk += tile_size * kChunk) {
    const int64_t left = layout.width - k;
    const int64_t count = left < 0 ? 0 : left < kChunk ? left : kChunk;
    for (int64_t i = 0; i < count; ++i) chunk[i] = row[k + i] * weight;
    for (int64_t i = count; i < kChunk; ++i) chunk[i] = 0.0f;
  }
}

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/// Products of M tokens and kLanes rows of each half, from `lane` on.
template <class Weights, int M>
inline __attribute__((always_inline)) void multiply_lanes(const PanelCall& call, int lane,
                                                          Ahead& ahead, float* out) {
  constexpr int kGroup = Weights::kGroup;
  const PanelLayout& layout = *call.layout;
  Weights weights;
  weights.unit = call.panel;
  weights.lane = lane;
  weights.unit += call.begin / layout.unit_columns * layout.unit_bytes;
  const float* tokens = reinterpret_cast<const float*>(call.tokens) + call.begin * M;
  Vec acc[M][2] = {};
  if (call.begin > 0) {
    for (int m = 0; m < M; ++m) {
      for (int h = 0; h < 2; ++h) acc[m][h] = load(out + m * kPanelRows + h * kHalf + lane);
    }
  }
  for (int64_t begin = call.begin; begin < call.end;) {
    const int64_t unit = begin / layout.unit_columns * layout.unit_columns;
    const int64_t end = least(unit + layout.unit_columns, call.end);
    weights.begin_unit(layout);
    weights.at += (begin - unit) / 4 * layout.quad_bytes();
    for (; begin < end; begin += kChunk, tokens += M * kChunk) {
      ahead.step();
      MOE_EXPORT_UNROLL(16)
      for (int i = 0; i < kChunk; i += kGroup) {
        weights.fetch();
        MOE_EXPORT_UNROLL(4)
        for (int j = 0; j < kGroup; ++j) {
          Vec w[2];
          weights.column(j, w);
          MOE_EXPORT_UNROLL(16)
          for (int m = 0; m < M; ++m) {
            const Vec x = broadcast(tokens[m * kChunk + i + j]);
            acc[m][0] += w[0] * x;
            acc[m][1] += w[1] * x;
          }
        }
      }
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int h = 0; h < 2; ++h) store(out + m * kPanelRows + h * kHalf + lane, acc[m][h]);
  }
}

template <class Weights, int M = kMaxPanelTile>
void multiply_floats(const PanelCall& call, float* out) {
  if (call.num_tokens == M) {
    Ahead ahead = *call.ahead;
    for (int lane = 0; lane < kHalf; lane += kLanes) {
      multiply_lanes<Weights, M>(call, lane, ahead, out);
    }
    *call.ahead = ahead;
  } else if constexpr (M > 1) {
    multiply_floats<Weights, M - 1>(call, out);
  }
}

void nothing() {}

template <class Weights>
constexpr PanelKernels kFloatKernels = {
    kMaxPanelTile,    128,     float_token_bytes,        no_scratch, num_chunks,
    pack_float_token, nullptr, multiply_floats<Weights>, nothing,    nothing};

const PanelKernels* float_panel_kernels(WeightType type) {
  switch (type) {
    case WeightType::kFp32:
      return &kFloatKernels<Fp32Weights>;
    case WeightType::kFp16:
      return &kFloatKernels<Fp16Weights>;
    case WeightType::kBf16:
      return &kFloatKernels<Bf16Weights>;
    case WeightType::kInt8:
      return &kFloatKernels<Int8Weights>;
    case WeightType::kInt4:
      return &kFloatKernels<Int4Weights>;
    case WeightType::kMxfp4:
      return &kFloatKernels<Mxfp4Weights>;
    case WeightType::kFp8:
      return nullptr;
  }
  __builtin_unreachable();
}

}  // namespace
}  // namespace moe_export::cpu
