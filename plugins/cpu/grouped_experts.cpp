#include "grouped_experts.h"

#include <algorithm>
#include <vector>

#include "expert_kernels.h"

namespace moe_export::cpu {
namespace {

/// Weights of one task: they stay in the second-level cache while the expert's tokens pass.
constexpr int64_t kBlockBytes = 1 << 18;
/// Slots that one combining task adds up.
constexpr int64_t kCombineFloats = 1 << 16;

/// One call in four phases, each a loop over independent tasks.
class ExpertsRun {
 public:
  ExpertsRun(const GroupedExpertsAttributes& attributes, const GroupedExpertsTensors& tensors,
             const ExpertKernels& kernels, float* workspace)
      : attributes_(attributes),
        tensors_(tensors),
        kernels_(kernels),
        hidden_size_(attributes.hidden_size),
        intermediate_size_(attributes.intermediate_size),
        plan_(plan_experts(tensors.expert_ids, tensors.num_tokens * tensors.top_k,
                           attributes.first_expert, attributes.num_experts, kernels.max_tile)),
        tokens_(workspace),
        hidden_(workspace + num_rows() * padded_width(hidden_size_)),
        slots_(workspace) {}

  void run(ThreadPool& pool) {
    parallel_for(pool, plan_.tiles.size(), [&](size_t i) { pack_tile(plan_.tiles[i]); });
    const int64_t up_width = hidden_size_ * (attributes_.gated ? 2 : 1);
    for_each_block(pool, intermediate_size_, up_width,
                   [&](const ActiveExpert& expert, auto... b) { project_up(expert, b...); });
    for_each_block(pool, hidden_size_, intermediate_size_,
                   [&](const ActiveExpert& expert, auto... b) { project_down(expert, b...); });
    const int64_t chunk = std::max<int64_t>(1, kCombineFloats / (hidden_size_ * tensors_.top_k));
    const int64_t num_chunks = (tensors_.num_tokens + chunk - 1) / chunk;
    parallel_for(pool, num_chunks, [&](size_t i) {
      const int64_t first = static_cast<int64_t>(i) * chunk;
      combine(first, std::min(first + chunk, tensors_.num_tokens));
    });
  }

 private:
  int64_t num_rows() const { return static_cast<int64_t>(plan_.pairs.size()); }

  /// Calls `task(expert, first, count)` for blocks of the `num_columns` outputs of every active
  /// expert; an output reads `width` weights.
  template <class Task>
  void for_each_block(ThreadPool& pool, int64_t num_columns, int64_t width, Task&& task) {
    const int64_t fitting = kBlockBytes / (width * static_cast<int64_t>(sizeof(float)));
    const int64_t block = std::max(fitting / kChunk, int64_t{1}) * kChunk;
    const int64_t num_blocks = (num_columns + block - 1) / block;
    parallel_for(pool, plan_.experts.size() * num_blocks, [&](size_t i) {
      const int64_t index = static_cast<int64_t>(i);
      const int64_t first = index % num_blocks * block;
      task(plan_.experts[index / num_blocks], first, std::min(block, num_columns - first));
    });
  }

  /// Gathers the tokens of a tile.
  void pack_tile(const TokenTile& tile) {
    float* const packed = tokens_ + tile.begin * padded_width(hidden_size_);
    for (int64_t m = 0; m < tile.size; ++m) {
      const int64_t pair = plan_.pairs[tile.begin + m];
      const float* const x = tensors_.x + pair / tensors_.top_k * hidden_size_;
      const bool weighted = attributes_.weight_on == WeightOn::kInput;
      const float weight = weighted ? tensors_.expert_weights[pair] : 1.0f;
      for (int64_t k = 0; k < padded_width(hidden_size_); k += kChunk) {
        float* const chunk = packed + k * tile.size + m * kChunk;
        const int64_t count = std::min(kChunk, hidden_size_ - k);
        for (int64_t i = 0; i < count; ++i) chunk[i] = x[k + i] * weight;
        std::fill(chunk + count, chunk + kChunk, 0.0f);
      }
    }
  }

  void project_up(const ActiveExpert& active, int64_t first, int64_t count) {
    const int64_t gate_rows = attributes_.gated ? intermediate_size_ : 0;
    const int64_t row = active.expert * (gate_rows + intermediate_size_) + first;
    const auto rows_from = [&](int64_t begin) {
      return LinearRows{tensors_.up_weight + begin * hidden_size_,
                        tensors_.up_bias ? tensors_.up_bias + begin : nullptr, count, hidden_size_};
    };
    for (int64_t i = active.first_tile; i < active.last_tile; ++i) {
      const TokenTile& tile = plan_.tiles[i];
      kernels_.project_up(
          attributes_, rows_from(row), rows_from(row + gate_rows),
          tokens_ + tile.begin * padded_width(hidden_size_), tile.size,
          hidden_ + tile.begin * padded_width(intermediate_size_) + first * tile.size);
    }
  }

  void project_down(const ActiveExpert& active, int64_t first, int64_t count) {
    const int64_t row = active.expert * hidden_size_ + first;
    const LinearRows down = {tensors_.down_weight + row * intermediate_size_,
                             tensors_.down_bias ? tensors_.down_bias + row : nullptr, count,
                             intermediate_size_};
    for (int64_t i = active.first_tile; i < active.last_tile; ++i) {
      const TokenTile& tile = plan_.tiles[i];
      kernels_.project_down(down, hidden_ + tile.begin * padded_width(intermediate_size_),
                            tile.size, slots_ + tile.begin * hidden_size_ + first, hidden_size_);
    }
  }

  void combine(int64_t first_token, int64_t last_token) {
    const int64_t top_k = tensors_.top_k;
    std::vector<const float*> slots(top_k);
    std::vector<float> weights(top_k, 1.0f);
    for (int64_t t = first_token; t < last_token; ++t) {
      for (int64_t k = 0; k < top_k; ++k) {
        const int64_t pair = t * top_k + k;
        const int64_t row = plan_.rows[pair];
        slots[k] = row == ExpertPlan::kNowhere ? nullptr : slots_ + row * hidden_size_;
        if (attributes_.weight_on == WeightOn::kOutput) {
          weights[k] = tensors_.expert_weights[pair];
        }
      }
      kernels_.combine(slots.data(), weights.data(), top_k, hidden_size_,
                       tensors_.y + t * hidden_size_);
    }
  }

  const GroupedExpertsAttributes& attributes_;
  const GroupedExpertsTensors& tensors_;
  const ExpertKernels& kernels_;
  const int64_t hidden_size_;
  const int64_t intermediate_size_;
  const ExpertPlan plan_;
  float* const tokens_;  // packed tiles of [rows, H]
  float* const hidden_;  // packed tiles of [rows, I]
  float* const slots_;   // [rows, H]; takes the tokens' place, which the up projection has read
};

}  // namespace

size_t grouped_experts_workspace_bytes(const GroupedExpertsAttributes& attributes,
                                       int64_t num_pairs) {
  const int64_t width =
      padded_width(attributes.hidden_size) + padded_width(attributes.intermediate_size);
  return static_cast<size_t>(num_pairs) * static_cast<size_t>(width) * sizeof(float);
}

void grouped_experts(const GroupedExpertsAttributes& attributes,
                     const GroupedExpertsTensors& tensors, Isa isa, void* workspace,
                     ThreadPool& pool) {
  ExpertsRun(attributes, tensors, expert_kernels(isa), static_cast<float*>(workspace)).run(pool);
}

}  // namespace moe_export::cpu
