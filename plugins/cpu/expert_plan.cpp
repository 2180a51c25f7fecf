#include "expert_plan.h"

namespace moe_export::cpu {
namespace {

void add_tiles(int64_t expert, int64_t begin, int64_t end, int64_t max_tile, ExpertPlan& plan) {
  const int64_t num_tiles = (end - begin + max_tile - 1) / max_tile;
  const int64_t first_tile = static_cast<int64_t>(plan.tiles.size());
  for (int64_t left = num_tiles; left > 0; --left) {
    const int64_t size = (end - begin) / left;
    plan.tiles.push_back({begin, size});
    begin += size;
  }
  plan.experts.push_back({expert, first_tile, first_tile + num_tiles});
}

}  // namespace

ExpertPlan plan_experts(const ExpertIds& ids, int64_t num_pairs, int64_t first_expert,
                        int64_t num_experts, int64_t max_tile) {
  // The lower bound is checked first: the difference of an id below it could overflow.
  const auto local_expert = [&](int64_t pair) {
    const int64_t id = ids[pair];
    const bool held = id >= first_expert && id - first_expert < num_experts;
    return held ? id - first_expert : ExpertPlan::kNowhere;
  };

  std::vector<int64_t> next(num_experts + 1, 0);  // first a count, then the next free row
  for (int64_t pair = 0; pair < num_pairs; ++pair) {
    const int64_t expert = local_expert(pair);
    if (expert != ExpertPlan::kNowhere) ++next[expert + 1];
  }
  ExpertPlan plan;
  for (int64_t expert = 0; expert < num_experts; ++expert) {
    const int64_t count = next[expert + 1];
    next[expert + 1] += next[expert];
    if (count > 0) add_tiles(expert, next[expert], next[expert + 1], max_tile, plan);
  }
  plan.pairs.resize(next[num_experts]);
  plan.rows.assign(num_pairs, ExpertPlan::kNowhere);
  for (int64_t pair = 0; pair < num_pairs; ++pair) {
    const int64_t expert = local_expert(pair);
    if (expert == ExpertPlan::kNowhere) continue;
    plan.rows[pair] = next[expert]++;
    plan.pairs[plan.rows[pair]] = pair;
  }
  return plan;
}

}  // namespace moe_export::cpu
