#include "expert_plan.h"

namespace moe_export::cpu {

SortedPairs sort_pairs(const ExpertIds& ids, int64_t num_pairs, int64_t first_expert,
                       int64_t num_experts) {
  // The lower bound is checked first: the difference of an id below it could overflow.
  const auto local_expert = [&](int64_t pair) {
    const int64_t id = ids[pair];
    const bool held = id >= first_expert && id - first_expert < num_experts;
    return held ? id - first_expert : SortedPairs::kNowhere;
  };

  std::vector<int64_t> next(num_experts + 1, 0);  // first a count, then the next free row
  for (int64_t pair = 0; pair < num_pairs; ++pair) {
    const int64_t expert = local_expert(pair);
    if (expert != SortedPairs::kNowhere) ++next[expert + 1];
  }
  for (int64_t expert = 0; expert < num_experts; ++expert) next[expert + 1] += next[expert];
  SortedPairs sorted;
  sorted.ends.assign(next.begin() + 1, next.end());
  sorted.pairs.resize(next[num_experts]);
  sorted.rows.assign(num_pairs, SortedPairs::kNowhere);
  for (int64_t pair = 0; pair < num_pairs; ++pair) {
    const int64_t expert = local_expert(pair);
    if (expert == SortedPairs::kNowhere) continue;
    sorted.rows[pair] = next[expert]++;
    sorted.pairs[sorted.rows[pair]] = pair;
  }
  return sorted;
}

RowTiles cut_tiles(const std::vector<int64_t>& ends, int64_t max_tile) {
  RowTiles cut;
  const int64_t num_experts = static_cast<int64_t>(ends.size());
  int64_t begin = 0;
  for (int64_t expert = 0; expert < num_experts; ++expert) {
    const int64_t num_rows = ends[expert] - begin;
    if (num_rows == 0) continue;
    const int64_t first_tile = static_cast<int64_t>(cut.tiles.size());
    const int64_t num_tiles = (num_rows + max_tile - 1) / max_tile;
    for (int64_t left = num_tiles; left > 0; --left) {
      const int64_t size = (ends[expert] - begin) / left;
      cut.tiles.push_back({begin, size});
      begin += size;
    }
    cut.experts.push_back({expert, first_tile, first_tile + num_tiles});
  }
  return cut;
}

}  // namespace moe_export::cpu
