#include "packed_experts.h"

#include <algorithm>
#include <numeric>
#include <thread>
#include <vector>

#include "expert_kernels.h"
#include "packed_rows.h"
#include "panel_products.h"
#include "row_blocks.h"

namespace moe_export::cpu {
namespace {

/// Whole experts are tasks where each thread gets so many: what one task computes, it finds in its
/// cache. With fewer experts their panels are shared out, one projection after the other.
constexpr size_t kExpertsPerThread = 4;

/// Bytes of panels in one task, at most: the last ones must end at about the same time.
constexpr int64_t kMostTaskBytes = 1 << 24;

size_t most_threads() { return std::max(1u, std::thread::hardware_concurrency()); }

/// One call: tokens are packed, projected up, packed again and projected down, and added up.
class PackedRun {
 public:
  PackedRun(const GroupedExpertsAttributes& attributes, const GroupedExpertsTensors& tensors,
            const GroupedExpertsPlan& plan, char* workspace)
      : attributes_(attributes),
        tensors_(tensors),
        kernels_(*panel_kernels(plan.isa, attributes.weight_type)),
        pointwise_(expert_kernels(plan.isa)),
        plan_(plan),
        sizes_(attributes, kernels_),
        rows_(attributes, tensors, plan, kernels_, sizes_, workspace) {}

  void run(ThreadPool& pool) {
    if (plan_.tiles.experts.size() >= kExpertsPerThread * most_threads()) {
      run_experts(pool);
    } else {
      run_panels(pool);
    }
    const bool weighted = attributes_.weight_on == WeightOn::kOutput;
    combine_rows<int64_t>(
        pool, pointwise_,
        {tensors_.num_tokens, tensors_.top_k, attributes_.hidden_size,
         float_stride(rows_.results()), floats(rows_.results(), 0), plan_.sorted.rows.data(),
         weighted ? tensors_.expert_weights : nullptr, tensors_.y});
  }

 private:
  using Expert = ActiveExpert;

  /// A task is an expert; those with most rows come first.
  void run_experts(ThreadPool& pool) {
    rows_.pack_shared(pool);
    std::vector<Expert> order = plan_.tiles.experts;
    std::stable_sort(order.begin(), order.end(),
                     [&](const Expert& a, const Expert& b) { return num_rows(a) > num_rows(b); });
    parallel_for(pool, order.size(), [&](size_t i) {
      const Expert& expert = order[i];
      for_tiles(expert, [&](const RowTile& tile) { rows_.pack_tokens(tile); });
      project_up(expert, 0, sizes_.up_panels, down_weight(expert));
      for_tiles(expert, [&](const RowTile& tile) { rows_.pack_hidden(tile); });
      project_down(expert, 0, sizes_.down_panels);
    });
  }

  int64_t num_rows(const Expert& expert) const { return plan_.tiles.num_rows(expert); }

  /// A task is some panels of an expert.
  void run_panels(ThreadPool& pool) {
    const auto& tiles = plan_.tiles.tiles;
    parallel_for(pool, tiles.size(), [&](size_t i) { rows_.pack_tokens(tiles[i]); });
    share_panels(pool, sizes_.up, sizes_.up_panels, [&](const Expert& expert, auto... range) {
      project_up(expert, range..., nullptr);
    });
    parallel_for(pool, tiles.size(), [&](size_t i) { rows_.pack_hidden(tiles[i]); });
    share_panels(pool, sizes_.down, sizes_.down_panels,
                 [&](const Expert& expert, auto... range) { project_down(expert, range...); });
  }

  template <class Task>
  void share_panels(ThreadPool& pool, const PanelLayout& layout, int64_t panels, Task&& task) {
    const auto& experts = plan_.tiles.experts;
    const int64_t least = std::max<int64_t>(1, kTaskPanelBytes / layout.panel_bytes);
    const int64_t wanted = kExpertsPerThread * static_cast<int64_t>(most_threads());
    const int64_t parts = std::max<int64_t>(1, wanted / std::max<size_t>(1, experts.size()));
    const int64_t most = std::max<int64_t>(1, kMostTaskBytes / layout.panel_bytes);
    const int64_t size = std::max(least, std::min(most, (panels + parts - 1) / parts));
    const int64_t tasks = (panels + size - 1) / size;
    parallel_for(pool, experts.size() * tasks, [&](size_t i) {
      const int64_t first = static_cast<int64_t>(i) % tasks * size;
      task(experts[i / tasks], first, std::min(first + size, panels));
    });
  }

  template <class Task>
  void for_tiles(const Expert& expert, Task&& task) const {
    for (int64_t i = expert.first_tile; i < expert.last_tile; ++i) task(plan_.tiles.tiles[i]);
  }

  const char* expert_panels(const void* weight, const PanelLayout& layout, int64_t panels,
                            const Expert& expert) const {
    return static_cast<const char*>(weight) + expert.expert * panels * layout.panel_bytes;
  }
  const char* down_weight(const Expert& expert) const {
    return expert_panels(tensors_.down_weight, sizes_.down, sizes_.down_panels, expert);
  }

  void project_up(const Expert& expert, int64_t first, int64_t last, const char* after) {
    const int64_t intermediate = attributes_.intermediate_size;
    const float* const bias =
        tensors_.up_bias == nullptr
            ? nullptr
            : tensors_.up_bias + expert.expert * intermediate * (attributes_.gated ? 2 : 1);
    const char* const panels =
        expert_panels(tensors_.up_weight, sizes_.up, sizes_.up_panels, expert);
    const auto finish = [&](int64_t panel, const RowTile& tile, float* products) {
      const int64_t begin = panel * sizes_.panel_hidden;
      const int64_t count = std::min(sizes_.panel_hidden, intermediate - begin);
      const float* const gate = bias == nullptr ? nullptr : bias + begin;
      const float* const up = gate == nullptr || !attributes_.gated ? gate : gate + intermediate;
      pointwise_.finish_up(attributes_, products, tile.size, gate, up, count,
                           floats(rows_.hidden(), tile.begin) + begin,
                           float_stride(rows_.hidden()));
    };
    multiply(sizes_.up, {panels, first, last, after, sizes_.down.panel_bytes}, expert,
             rows_.tokens(), finish);
  }

  void project_down(const Expert& expert, int64_t first, int64_t last) {
    const int64_t width = attributes_.hidden_size;
    const float* const bias =
        tensors_.down_bias == nullptr ? nullptr : tensors_.down_bias + expert.expert * width;
    const auto finish = [&](int64_t panel, const RowTile& tile, float* products) {
      const int64_t begin = panel * kPanelRows;
      const int64_t count = std::min(kPanelRows, width - begin);
      for (int64_t m = 0; m < tile.size; ++m) {
        store_products(products + m * kPanelRows, bias ? bias + begin : nullptr, count,
                       floats(rows_.results(), tile.begin + m) + begin);
      }
    };
    multiply(sizes_.down, {down_weight(expert), first, last, nullptr, 0}, expert,
             rows_.packed_hidden(), finish);
  }

  template <class Finish>
  void multiply(const PanelLayout& layout, const PanelRange& range, const Expert& expert,
                const PackedTokens& tokens, Finish&& finish) {
    PanelProducts(kernels_, layout, num_rows(expert))
        .run(range, plan_.tiles.tiles.data() + expert.first_tile,
             expert.last_tile - expert.first_tile, tokens, finish);
  }

  const GroupedExpertsAttributes& attributes_;
  const GroupedExpertsTensors& tensors_;
  const PanelKernels& kernels_;
  const ExpertKernels& pointwise_;
  const GroupedExpertsPlan& plan_;
  const PackedSizes sizes_;
  PackedRows rows_;
};

}  // namespace

size_t packed_workspace_bytes(const GroupedExpertsAttributes& attributes,
                              const GroupedExpertsPlan& plan) {
  const PanelKernels& kernels = *panel_kernels(plan.isa, attributes.weight_type);
  const PackedSizes sizes(attributes, kernels);
  return static_cast<size_t>(plan.sorted.num_rows()) * static_cast<size_t>(sizes.row_bytes());
}

void run_packed_experts(const GroupedExpertsAttributes& attributes,
                        const GroupedExpertsTensors& tensors, const GroupedExpertsPlan& plan,
                        void* workspace, ThreadPool& pool) {
  PackedRun(attributes, tensors, plan, static_cast<char*>(workspace)).run(pool);
}

}  // namespace moe_export::cpu
