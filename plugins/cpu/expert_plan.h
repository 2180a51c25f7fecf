#pragma once
#include <cstdint>
#include <vector>

namespace moe_export::cpu {

/// The ids that the router chose, int32 or int64.
struct ExpertIds {
  const void* data;  ///< [tokens, top_k]
  bool is_int64;

  int64_t operator[](int64_t index) const {
    return is_int64 ? static_cast<const int64_t*>(data)[index]
                    : static_cast<const int32_t*>(data)[index];
  }
};

/// The (token, k) pairs sorted by expert: row i is pair `pairs[i]`.
struct SortedPairs {
  static constexpr int64_t kNowhere = -1;

  std::vector<int64_t> pairs;  ///< sorted row → pair index token · top_k + k
  std::vector<int64_t> rows;   ///< pair index → sorted row, or kNowhere if its id is out of range
  std::vector<int64_t> ends;   ///< [experts], the end of each expert's rows

  int64_t num_rows() const { return static_cast<int64_t>(pairs.size()); }
};

/// Sorts pairs by expert, keeping their order within one; ids outside
/// [first_expert, first_expert + num_experts) are left out.
SortedPairs sort_pairs(const ExpertIds& ids, int64_t num_pairs, int64_t first_expert,
                       int64_t num_experts);

/// Rows [begin, begin + size); all belong to one expert.
struct RowTile {
  int64_t begin;
  int64_t size;
};

/// An expert that has rows, and its tiles [first_tile, last_tile).
struct ActiveExpert {
  int64_t expert;
  int64_t first_tile;
  int64_t last_tile;
};

/// Rows sorted by expert, cut into tiles.
struct RowTiles {
  std::vector<RowTile> tiles;
  std::vector<ActiveExpert> experts;

  int64_t num_rows(const ActiveExpert& expert) const {
    const RowTile& last = tiles[expert.last_tile - 1];
    return last.begin + last.size - tiles[expert.first_tile].begin;
  }
};

/// Cuts the rows of each expert.
/// @param ends     [experts], the end of each expert's rows, ascending.
/// @param max_tile most rows in one tile; an expert's tiles differ by at most one row.
RowTiles cut_tiles(const std::vector<int64_t>& ends, int64_t max_tile);

}  // namespace moe_export::cpu
