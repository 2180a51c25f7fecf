#include <limits>
#include <vector>

#include "check.h"
#include "expert_plan.h"

using namespace moe_export::cpu;
using moe_export::test::expect;
using moe_export::test::run_case;

using Indices = std::vector<int64_t>;

int main() {
  run_case("experts_c2_pairs_are_sorted_by_expert", [] {
    const std::vector<int32_t> ids = {2, 0, 2, 1, 2, 0};
    const SortedPairs sorted = sort_pairs({ids.data(), false}, 6, 0, 4);
    expect(sorted.pairs == Indices{1, 5, 3, 0, 2, 4}, "pairs");
    expect(sorted.rows == Indices{3, 0, 4, 2, 5, 1}, "rows");
    expect(sorted.ends == Indices{2, 3, 6, 6}, "ends");
  });
  run_case("experts_c2_ids_out_of_range_are_left_out", [] {
    using Limits = std::numeric_limits<int64_t>;
    const std::vector<int64_t> ids = {Limits::min(),    -1,           4, 5, 6, 7,
                                      int64_t{1} << 32, Limits::max()};
    const SortedPairs sorted = sort_pairs({ids.data(), true}, 8, 5, 2);
    expect(sorted.pairs == Indices{3, 4}, "only ids 5 and 6 are held");
    expect(sorted.ends == Indices{1, 2}, "ends");
  });
  run_case("tiles_belong_to_one_expert_each", [] {
    const RowTiles cut = cut_tiles({0, 3, 3, 8}, 2);
    expect(cut.experts.size() == 2 && cut.tiles.size() == 5, "idle experts have no tile");
    expect(cut.experts[0].expert == 1 && cut.experts[1].expert == 3, "experts");
    expect(cut.experts[1].first_tile == 2 && cut.experts[1].last_tile == 5, "tiles of expert 3");
    expect(cut.tiles[2].begin == 3, "expert 3 begins where 1 ends");
  });
  run_case("tiles_cover_every_row_evenly", [] {
    for (int64_t count = 0; count < 40; ++count) {
      const RowTiles cut = cut_tiles({count}, 6);
      int64_t row = 0;
      for (const RowTile& tile : cut.tiles) {
        expect(tile.begin == row && tile.size >= 1 && tile.size <= 6, "tile bounds");
        expect(tile.size >= cut.tiles.back().size - 1, "tile sizes differ by more than one");
        row += tile.size;
      }
      expect(row == count, "rows left over");
    }
  });
  return moe_export::test::finish();
}
