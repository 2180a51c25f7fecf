#pragma once
#include <cstdint>

namespace moe_export::cuda {

/// Pairs and threads of a block that sorts.
constexpr int kSortPairs = 256;
constexpr int32_t kNowhere = -1;

/// One call, as its kernels take it. P (token, k) pairs in C = ceil(P / kSortPairs) blocks, E
/// experts.
struct ExpertSortCall {
  const void* expert_ids;  ///< [P], int32 or int64
  int64_t first_expert;
  int32_t is_int64;
  int32_t num_pairs;
  int32_t num_experts;
  int32_t tile_rows;  ///< of the tiles to list, or 0
  int32_t* counts;    ///< [C, E], scratch
  int32_t* rows;      ///< [P], pair → sorted row, or kNowhere if its id is out of range
  int32_t* pairs;     ///< [P], sorted row → pair; as many as there are rows
  int32_t* ends;      ///< [E], the end of each expert's rows
  int32_t* tiles;     ///< see `TileList`, or null
};

/// The tiles of rows that belong to one expert, in `tiles`: their number, then for each its expert
/// and its first row.
struct TileList {
  static constexpr int64_t size(int64_t most_tiles) { return 4 + 2 * most_tiles; }
  static constexpr int64_t kFirst = 4;  ///< where the first tile lies: aligned to 16 bytes
};

/// Lists the tiles of rows that are sorted already, as `GroupedMatMul` has them.
struct TileCall {
  const int32_t* ends;  ///< [E], the rows' ends as they came; clamped
  int32_t* sane_ends;   ///< [E], ascending within [0, num_rows]
  int32_t* tiles;
  int32_t num_experts;
  int32_t num_rows;
  int32_t tile_rows;
};

}  // namespace moe_export::cuda
