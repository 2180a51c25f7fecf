#include <limits>
#include <vector>

#include "check.h"
#include "expert_plan.h"

using namespace moe_export::cpu;
using moe_export::test::expect;
using moe_export::test::run_case;

int main() {
  run_case("experts_c2_pairs_are_sorted_by_expert", [] {
    const std::vector<int32_t> ids = {2, 0, 2, 1, 2, 0};
    const ExpertPlan plan = plan_experts({ids.data(), false}, 6, 0, 4, 2);
    expect(plan.pairs == std::vector<int64_t>{1, 5, 3, 0, 2, 4}, "pairs");
    expect(plan.rows == std::vector<int64_t>{3, 0, 4, 2, 5, 1}, "rows");
    expect(plan.experts.size() == 3 && plan.tiles.size() == 4, "idle expert 3 has no tile");
  });
  run_case("experts_c2_ids_out_of_range_are_left_out", [] {
    using Limits = std::numeric_limits<int64_t>;
    const std::vector<int64_t> ids = {Limits::min(),    -1,           4, 5, 6, 7,
                                      int64_t{1} << 32, Limits::max()};
    const ExpertPlan plan = plan_experts({ids.data(), true}, 8, 5, 2, 6);
    expect(plan.pairs == std::vector<int64_t>{3, 4}, "only ids 5 and 6 are held");
  });
  run_case("tiles_cover_every_row_evenly", [] {
    for (int64_t count = 0; count < 40; ++count) {
      const std::vector<int32_t> ids(count, 0);
      const ExpertPlan plan = plan_experts({ids.data(), false}, count, 0, 1, 6);
      int64_t row = 0;
      for (const TokenTile& tile : plan.tiles) {
        expect(tile.begin == row && tile.size >= 1 && tile.size <= 6, "tile bounds");
        expect(tile.size >= plan.tiles.back().size - 1, "tile sizes differ by more than one");
        row += tile.size;
      }
      expect(row == count, "rows left over");
    }
  });
  return moe_export::test::finish();
}
