#include "row_major_experts.h"

#include <vector>

#include "expert_kernels.h"
#include "row_blocks.h"

namespace moe_export::cpu {
namespace {

/// One call in four phases, each a loop over independent tasks.
class ExpertsRun {
 public:
  ExpertsRun(const GroupedExpertsAttributes& attributes, const GroupedExpertsTensors& tensors,
             const GroupedExpertsPlan& plan, float* workspace)
      : attributes_(attributes),
        tensors_(tensors),
        kernels_(expert_kernels(plan.isa)),
        sorted_(plan.sorted),
        tiles_(plan.tiles.tiles),
        experts_(plan.tiles.experts),
        hidden_size_(attributes.hidden_size),
        intermediate_size_(attributes.intermediate_size),
        tokens_(workspace),
        hidden_(workspace + sorted_.num_rows() * padded_width(hidden_size_)),
        slots_(workspace) {}

  void run(ThreadPool& pool) {
    parallel_for(pool, tiles_.size(), [&](size_t i) { pack_tile(tiles_[i]); });
    const int64_t up_width = hidden_size_ * (attributes_.gated ? 2 : 1);
    for_each_block(pool, experts_, intermediate_size_, up_width,
                   [&](const ActiveExpert& expert, auto... b) { project_up(expert, b...); });
    for_each_block(pool, experts_, hidden_size_, intermediate_size_,
                   [&](const ActiveExpert& expert, auto... b) { project_down(expert, b...); });
    const bool weighted = attributes_.weight_on == WeightOn::kOutput;
    combine_rows<int64_t>(
        pool, kernels_,
        {tensors_.num_tokens, tensors_.top_k, hidden_size_, hidden_size_, slots_,
         sorted_.rows.data(), weighted ? tensors_.expert_weights : nullptr, tensors_.y});
  }

 private:
  /// Gathers the tokens of a tile.
  void pack_tile(const RowTile& tile) {
    float* const packed = tokens_ + tile.begin * padded_width(hidden_size_);
    const bool weighted = attributes_.weight_on == WeightOn::kInput;
    for (int64_t m = 0; m < tile.size; ++m) {
      const int64_t pair = sorted_.pairs[tile.begin + m];
      const float* const x = tensors_.x + pair / tensors_.top_k * hidden_size_;
      pack_row(x, weighted ? tensors_.expert_weights[pair] : 1.0f, hidden_size_, m, tile.size,
               packed);
    }
  }

  void project_up(const ActiveExpert& active, int64_t first, int64_t count) {
    const int64_t gate_rows = attributes_.gated ? intermediate_size_ : 0;
    const int64_t row = active.expert * (gate_rows + intermediate_size_) + first;
    const auto rows_from = [&](int64_t begin) {
      return LinearRows{static_cast<const float*>(tensors_.up_weight) + begin * hidden_size_,
                        tensors_.up_bias ? tensors_.up_bias + begin : nullptr, count, hidden_size_};
    };
    for (int64_t i = active.first_tile; i < active.last_tile; ++i) {
      const RowTile& tile = tiles_[i];
      kernels_.project_up(
          attributes_, rows_from(row), rows_from(row + gate_rows),
          tokens_ + tile.begin * padded_width(hidden_size_), tile.size,
          hidden_ + tile.begin * padded_width(intermediate_size_) + first * tile.size);
    }
  }

  void project_down(const ActiveExpert& active, int64_t first, int64_t count) {
    const int64_t row = active.expert * hidden_size_ + first;
    const LinearRows down = {
        static_cast<const float*>(tensors_.down_weight) + row * intermediate_size_,
        tensors_.down_bias ? tensors_.down_bias + row : nullptr, count, intermediate_size_};
    for (int64_t i = active.first_tile; i < active.last_tile; ++i) {
      const RowTile& tile = tiles_[i];
      kernels_.project(down, hidden_ + tile.begin * padded_width(intermediate_size_), tile.size,
                       slots_ + tile.begin * hidden_size_ + first, hidden_size_);
    }
  }

  const GroupedExpertsAttributes& attributes_;
  const GroupedExpertsTensors& tensors_;
  const ExpertKernels& kernels_;
  const SortedPairs& sorted_;
  const std::vector<RowTile>& tiles_;
  const std::vector<ActiveExpert>& experts_;
  const int64_t hidden_size_;
  const int64_t intermediate_size_;
  float* const tokens_;  // packed tiles of [rows, H]
  float* const hidden_;  // packed tiles of [rows, I]
  float* const slots_;   // [rows, H]; takes the tokens' place, which the up projection has read
};

}  // namespace

size_t row_major_workspace_bytes(const GroupedExpertsAttributes& attributes,
                                 const GroupedExpertsPlan& plan) {
  const int64_t width =
      padded_width(attributes.hidden_size) + padded_width(attributes.intermediate_size);
  return static_cast<size_t>(plan.sorted.num_rows()) * static_cast<size_t>(width) * sizeof(float);
}

void run_row_major_experts(const GroupedExpertsAttributes& attributes,
                           const GroupedExpertsTensors& tensors, const GroupedExpertsPlan& plan,
                           void* workspace, ThreadPool& pool) {
  ExpertsRun(attributes, tensors, plan, static_cast<float*>(workspace)).run(pool);
}

}  // namespace moe_export::cpu
