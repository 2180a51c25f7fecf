// Kernels for row-major weights, and the pointwise parts of an expert; compiled once per
// instruction set: the including file defines MOE_EXPORT_LANES and MOE_EXPORT_MAX_TILE.
#include "expert_kernels.h"
#include "vectors.inl"

namespace moe_export::cpu {
namespace {

constexpr int kMaxTile = MOE_EXPORT_MAX_TILE;
constexpr int kVectors = kChunk / kLanes;
constexpr int kTileRows = 4;
constexpr float kInfinity = __builtin_inff();

inline float sum_of_lanes(Vec v) {
#if MOE_EXPORT_LANES == 16
  const auto v8 = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                  __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
#else
  const auto v8 = v;
#endif
#if MOE_EXPORT_LANES >= 8
  const auto v4 =
      __builtin_shufflevector(v8, v8, 0, 1, 2, 3) + __builtin_shufflevector(v8, v8, 4, 5, 6, 7);
#else
  const auto v4 = v8;
#endif
  const auto v2 = v4 + __builtin_shufflevector(v4, v4, 2, 3, 0, 1);
  return v2[0] + v2[1];
}

/// acc[r][m] += weight[r] · tokens[m] over one chunk. This is the only place that multiplies
/// weights, so the order of a dot product is the same in every tile and at every tail.
template <int M>
inline __attribute__((always_inline)) void multiply_chunk(const float* const (&rows)[kTileRows],
                                                          int64_t offset, const float* tokens,
                                                          Vec (&acc)[kTileRows][M]) {
  for (int v = 0; v < kVectors; ++v) {
    Vec x[M];
    for (int m = 0; m < M; ++m) x[m] = load(tokens + m * kChunk + v * kLanes);
    for (int r = 0; r < kTileRows; ++r) {
      const Vec w = load(rows[r] + offset + v * kLanes);
      for (int m = 0; m < M; ++m) acc[r][m] += w * x[m];
    }
  }
}

/// out[m][r] = rows[r] · tokens[m], `out` rows kChunk floats apart.
template <int M>
void multiply_tile(const float* const (&rows)[kTileRows], int64_t width, const float* tokens,
                   float* out) {
  Vec acc[kTileRows][M] = {};
  const int64_t whole = width / kChunk * kChunk;
  for (int64_t k = 0; k < whole; k += kChunk, tokens += M * kChunk) {
    multiply_chunk<M>(rows, k, tokens, acc);
  }
  if (whole < width) {
    float padded[kTileRows][kChunk] = {};
    const float* tail[kTileRows];
    for (int r = 0; r < kTileRows; ++r) {
      for (int64_t k = whole; k < width; ++k) padded[r][k - whole] = rows[r][k];
      tail[r] = padded[r];
    }
    multiply_chunk<M>(tail, 0, tokens, acc);
  }
  for (int m = 0; m < M; ++m) {
    for (int r = 0; r < kTileRows; ++r) out[m * kChunk + r] = sum_of_lanes(acc[r][m]);
  }
}

/// out[m][c] = row (first + c) · tokens[m] + bias for up to kChunk rows; columns past the last row
/// hold copies of it, so that tiles are always whole.
template <int M>
void multiply_rows(const LinearRows& linear, int64_t first, const float* tokens,
                   float (&out)[M * kChunk]) {
  const int64_t last = linear.rows - 1;
  for (int64_t c = 0; c < kChunk && first + c <= last; c += kTileRows) {
    const float* rows[kTileRows];
    for (int r = 0; r < kTileRows; ++r) {
      const int64_t row = first + c + r < last ? first + c + r : last;
      rows[r] = linear.weight + row * linear.width;
    }
    multiply_tile<M>(rows, linear.width, tokens, out + c);
  }
  if (linear.bias == nullptr) return;
  for (int64_t c = 0; c < kChunk && first + c <= last; ++c) {
    for (int m = 0; m < M; ++m) out[m * kChunk + c] += linear.bias[first + c];
  }
}

// Comparisons are written so that NaN falls through to the value itself, as in NumPy.
inline Vec at_most(Vec value, float bound) { return value > bound ? broadcast(bound) : value; }
inline Vec at_least(Vec value, float bound) { return value < bound ? broadcast(bound) : value; }

/// e^x within 2 ulp, with overflow to infinity and gradual underflow to 0 (Cephes' polynomial).
inline Vec exponential(Vec x) {
  constexpr float kRound = 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer
  x = at_least(at_most(x, 89.0f), -104.0f);
  const Vec shifted = x * 1.44269504f + kRound;
  const Vec n = shifted - kRound;
  const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
  // 2^n in two factors: n reaches 128 and -150, beyond a float's exponent.
  const VecInt power = (VecInt)shifted - (VecInt)broadcast(kRound);
  const VecInt half = power >> 1;
  return p * (Vec)((half + 127) << 23) * (Vec)((power - half + 127) << 23);
}

/// x · Φ(x) by erfc's approximation 7.1.26 of Abramowitz and Stegun (absolute error 1.5e-7).
inline Vec gelu(Vec x) {
  const Vec magnitude = x < 0.0f ? -x : x;
  const Vec t = 1.0f / (magnitude * (0.3275911f * 0.707106781f) + 1.0f);
  Vec p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Vec tail = p * t * 0.5f * exponential(x * x * -0.5f);
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

inline Vec activate(Vec x, const GroupedExpertsAttributes& attributes) {
  switch (attributes.activation) {
    case Activation::kSilu:
      return x / (exponential(x * -attributes.alpha) + 1.0f);
    case Activation::kGelu:
      return gelu(x);
    case Activation::kGeluTanh:  // (1 + tanh(z)) / 2 is the logistic function of 2z
      return x / (exponential((x + x * x * x * 0.044715f) * -1.59576912f) + 1.0f);
    case Activation::kRelu:
      return at_least(x, 0.0f);
    case Activation::kRelu2:
      return at_least(x, 0.0f) * at_least(x, 0.0f);
    case Activation::kIdentity:
      return x;
  }
  __builtin_unreachable();
}

/// The elementwise part of an expert on one vector.
inline Vec inner(Vec gate, Vec up, const GroupedExpertsAttributes& attributes) {
  if (!attributes.gated) return activate(up, attributes);
  const float limit = attributes.limit > 0.0f ? attributes.limit : kInfinity;
  up = at_least(at_most(up, limit), -limit);
  const Vec activated = attributes.limit_on == LimitOn::kInput
                            ? activate(at_most(gate, limit), attributes)
                            : at_most(activate(gate, attributes), limit);
  return activated * (up + attributes.up_offset);
}

template <int M>
void project_up_tile(const GroupedExpertsAttributes& attributes, const LinearRows& gate_rows,
                     const LinearRows& up_rows, const float* tokens, float* hidden) {
  for (int64_t first = 0; first < up_rows.rows; first += kChunk, hidden += M * kChunk) {
    float gate[M * kChunk] = {}, up[M * kChunk] = {};
    if (attributes.gated) multiply_rows<M>(gate_rows, first, tokens, gate);
    multiply_rows<M>(up_rows, first, tokens, up);
    for (int64_t i = 0; i < M * kChunk; i += kLanes) {
      store(hidden + i, inner(load(gate + i), load(up + i), attributes));
    }
    for (int64_t c = up_rows.rows - first; c < kChunk; ++c) {
      for (int m = 0; m < M; ++m) hidden[m * kChunk + c] = 0.0f;
    }
  }
}

template <int M>
void project_tile(const LinearRows& linear, const float* tokens, float* out, int64_t out_stride) {
  for (int64_t first = 0; first < linear.rows; first += kChunk) {
    float result[M * kChunk];
    multiply_rows<M>(linear, first, tokens, result);
    for (int m = 0; m < M; ++m) {
      for (int64_t c = 0; c < kChunk && first + c < linear.rows; ++c) {
        out[m * out_stride + first + c] = result[m * kChunk + c];
      }
    }
  }
}

template <int M = kMaxTile>
void project_up(const GroupedExpertsAttributes& attributes, const LinearRows& gate,
                const LinearRows& up, const float* tokens, int64_t num_tokens, float* hidden) {
  if (num_tokens == M) return project_up_tile<M>(attributes, gate, up, tokens, hidden);
  if constexpr (M > 1) project_up<M - 1>(attributes, gate, up, tokens, num_tokens, hidden);
}

template <int M = kMaxTile>
void project(const LinearRows& linear, const float* tokens, int64_t num_tokens, float* out,
             int64_t out_stride) {
  if (num_tokens == M) return project_tile<M>(linear, tokens, out, out_stride);
  if constexpr (M > 1) project<M - 1>(linear, tokens, num_tokens, out, out_stride);
}

void combine(const float* const* slots, const float* weights, int64_t top_k, int64_t width,
             float* y) {
  for (int64_t i = 0; i < width; ++i) y[i] = 0.0f;
  for (int64_t k = 0; k < top_k; ++k) {
    if (slots[k] == nullptr) continue;
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) {
      store(y + i, load(y + i) + load(slots[k] + i) * weights[k]);
    }
    for (; i < width; ++i) y[i] += slots[k][i] * weights[k];
  }
}

/// Adds `count` biases to each of `num_tokens` rows that lie `kPanelRows` floats apart.
inline void add_bias(float* products, int64_t num_tokens, const float* bias, int64_t count) {
  if (bias == nullptr) return;
  for (int64_t m = 0; m < num_tokens; ++m) {
    for (int64_t c = 0; c < count; ++c) products[m * kPanelRows + c] += bias[c];
  }
}

void finish_up(const GroupedExpertsAttributes& attributes, float* products, int64_t num_tokens,
               const float* gate_bias, const float* up_bias, int64_t count, float* hidden,
               int64_t hidden_stride) {
  constexpr int64_t kHalf = kPanelRows / 2;
  const int64_t up = attributes.gated ? kHalf : 0;
  if (attributes.gated) add_bias(products, num_tokens, gate_bias, count);
  add_bias(products + up, num_tokens, up_bias, count);
  const int64_t width = attributes.gated ? kHalf : kPanelRows;
  for (int64_t m = 0; m < num_tokens; ++m) {
    float* const row = products + m * kPanelRows;
    for (int64_t c = 0; c < width; c += kLanes) {
      store(row + c, inner(load(row + c), load(row + up + c), attributes));
    }
    for (int64_t c = 0; c < count; ++c) hidden[m * hidden_stride + c] = row[c];
  }
}

/// values[i] = function(values[i]), a vector at a time.
template <class Function>
inline void transform(float* values, int64_t count, Function&& function) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(values + i, function(load(values + i)));
  if (i == count) return;
  float rest[kLanes] = {};
  for (int64_t j = i; j < count; ++j) rest[j - i] = values[j];
  store(rest, function(load(rest)));
  for (int64_t j = i; j < count; ++j) values[j] = rest[j - i];
}

void sigmoid(float* values, int64_t count) {
  transform(values, count, [](Vec x) { return 1.0f / (exponential(-x) + 1.0f); });
}

void softmax(float* values, int64_t count) {
  Vec tops = broadcast(-kInfinity);
  transform(values, count / kLanes * kLanes, [&](Vec x) {
    tops = x > tops ? x : tops;
    return x;
  });
  float top = -kInfinity;
  for (int lane = 0; lane < kLanes; ++lane) top = tops[lane] > top ? tops[lane] : top;
  for (int64_t i = count / kLanes * kLanes; i < count; ++i) top = values[i] > top ? values[i] : top;
  transform(values, count, [=](Vec x) { return exponential(x - top); });
  float sum = 0.0f;
  for (int64_t i = 0; i < count; ++i) sum += values[i];
  transform(values, count, [=](Vec x) { return x / sum; });
}

constexpr ExpertKernels kKernels = {kMaxTile, project_up<>, project<>, finish_up,
                                    combine,  sigmoid,      softmax};

}  // namespace
}  // namespace moe_export::cpu
