#include "expert_dispatch.h"

#include <algorithm>

#include "row_blocks.h"

namespace moe_export::cpu {
namespace {

int32_t narrow(int64_t row) { return static_cast<int32_t>(row); }

void fill_row_experts(const SortedPairs& sorted, int64_t num_slots, int32_t* row_experts) {
  int64_t begin = 0;
  for (size_t expert = 0; expert < sorted.ends.size(); ++expert) {
    std::fill(row_experts + begin, row_experts + sorted.ends[expert], narrow(expert));
    begin = sorted.ends[expert];
  }
  std::fill(row_experts + begin, row_experts + num_slots, narrow(sorted.ends.size() - 1));
}

}  // namespace

void expert_dispatch(const ExpertDispatchAttributes& attributes,
                     const ExpertDispatchTensors& tensors, ThreadPool& pool) {
  const int64_t num_slots = tensors.num_tokens * tensors.top_k, width = attributes.hidden_size;
  const SortedPairs sorted =
      sort_pairs(tensors.expert_ids, num_slots, attributes.first_expert, attributes.num_experts);
  std::transform(sorted.rows.begin(), sorted.rows.end(), tensors.row_map, narrow);
  std::transform(sorted.ends.begin(), sorted.ends.end(), tensors.group_ends, narrow);
  fill_row_experts(sorted, num_slots, tensors.row_experts);
  parallel_chunks(pool, num_slots, copied_rows(width), [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) {
      float* const to = tensors.rows + row * width;
      if (row < sorted.num_rows()) {
        std::copy_n(tensors.x + sorted.pairs[row] / tensors.top_k * width, width, to);
      } else {
        std::fill_n(to, width, 0.0f);
      }
    }
  });
}

}  // namespace moe_export::cpu
