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

/// Rows [begin, begin + size) of the sorted pairs; all belong to one expert.
struct TokenTile {
  int64_t begin;
  int64_t size;
};

/// An expert that some token uses, and its tiles [first_tile, last_tile).
struct ActiveExpert {
  int64_t expert;
  int64_t first_tile;
  int64_t last_tile;
};

/// The (token, k) pairs sorted by expert, and cut into tiles.
struct ExpertPlan {
  static constexpr int64_t kNowhere = -1;

  std::vector<int64_t> pairs;  ///< sorted row → pair index token · top_k + k
  std::vector<int64_t> rows;   ///< pair index → sorted row, or kNowhere if its id is out of range
  std::vector<TokenTile> tiles;
  std::vector<ActiveExpert> experts;
};

/// Sorts pairs by expert, keeping their order within one; ids outside
/// [first_expert, first_expert + num_experts) are left out.
/// @param max_tile most rows in one tile; an expert's tiles differ by at most one row.
ExpertPlan plan_experts(const ExpertIds& ids, int64_t num_pairs, int64_t first_expert,
                        int64_t num_experts, int64_t max_tile);

}  // namespace moe_export::cpu
