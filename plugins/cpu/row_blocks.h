#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "expert_kernels.h"
#include "expert_plan.h"
#include "parallel.h"

namespace moe_export::cpu {

/// Weights of one task: they stay in the second-level cache while the expert's rows pass.
inline constexpr int64_t kBlockBytes = 1 << 18;
/// Floats that a task which only copies or adds touches: enough to be worth a thread's while.
inline constexpr int64_t kCopyFloats = 1 << 16;

/// Rows of `width` floats that one copying task takes.
inline int64_t copied_rows(int64_t width) { return std::max<int64_t>(1, kCopyFloats / width); }

/// Calls `task(expert, first, count)` on `pool` for blocks of the `num_columns` outputs of every
/// active expert; an output reads `width` weights.
template <class Task>
void for_each_block(ThreadPool& pool, const std::vector<ActiveExpert>& experts, int64_t num_columns,
                    int64_t width, Task&& task) {
  const int64_t fitting = kBlockBytes / (width * static_cast<int64_t>(sizeof(float)));
  const int64_t block = std::max(fitting / kChunk, int64_t{1}) * kChunk;
  const int64_t num_blocks = (num_columns + block - 1) / block;
  parallel_for(pool, experts.size() * num_blocks, [&](size_t i) {
    const int64_t index = static_cast<int64_t>(i);
    const int64_t first = index % num_blocks * block;
    task(experts[index / num_blocks], first, std::min(block, num_columns - first));
  });
}

/// Writes `weight` · row into place `place` of a packed tile of `tile_size` rows.
inline void pack_row(const float* row, float weight, int64_t width, int64_t place,
                     int64_t tile_size, float* packed) {
  for (int64_t k = 0; k < width; k += kChunk) {
    float* const chunk = packed + k * tile_size + place * kChunk;
    const int64_t count = std::min(kChunk, width - k);
    for (int64_t i = 0; i < count; ++i) chunk[i] = row[k + i] * weight;
    std::fill(chunk + count, chunk + kChunk, 0.0f);
  }
}

/// What is added up for each token.
template <class Row>
struct WeightedRows {
  int64_t num_tokens;
  int64_t top_k;
  int64_t width;
  int64_t stride;        ///< floats from one row to the next
  const float* rows;     ///< [.., width]
  const Row* row_map;    ///< [num_tokens, top_k], the row of each slot; negative ones add nothing
  const float* weights;  ///< [num_tokens, top_k], or null for weights of 1
  float* y;              ///< [num_tokens, width]
};

/// y[t] = Σ_k weights[t, k] · rows[row_map[t, k]], in order of k.
template <class Row>
void combine_rows(ThreadPool& pool, const ExpertKernels& kernels, const WeightedRows<Row>& call) {
  const int64_t top_k = call.top_k;
  const int64_t chunk = copied_rows(call.width * top_k);
  parallel_chunks(pool, call.num_tokens, chunk, [&](int64_t first, int64_t last) {
    std::vector<const float*> slots(top_k);
    const std::vector<float> ones(call.weights == nullptr ? top_k : 0, 1.0f);
    for (int64_t t = first; t < last; ++t) {
      for (int64_t k = 0; k < top_k; ++k) {
        const int64_t row = call.row_map[t * top_k + k];
        slots[k] = row < 0 ? nullptr : call.rows + row * call.stride;
      }
      const float* const weights = call.weights ? call.weights + t * top_k : ones.data();
      kernels.combine(slots.data(), weights, top_k, call.width, call.y + t * call.width);
    }
  });
}

}  // namespace moe_export::cpu
