#pragma once
#include <algorithm>
#include <cstdint>

#include "grouped_experts.h"
#include "panel_kernels.h"
#include "panel_products.h"

namespace moe_export::cpu {

/// Sizes of one call with packed weights.
struct PackedSizes {
  PackedSizes(const GroupedExpertsAttributes& a, const PanelKernels& kernels)
      : up(PanelLayout::of(a.weight_type, a.block_size, a.has_zero_point, a.hidden_size)),
        down(PanelLayout::of(a.weight_type, a.block_size, a.has_zero_point, a.intermediate_size)),
        up_panels(num_panels(a.intermediate_size, a.gated)),
        down_panels(num_panels(a.hidden_size, false)),
        panel_hidden(a.gated ? kPanelRows / 2 : kPanelRows),
        token_bytes(place(std::max<int64_t>(kernels.token_bytes(up), a.hidden_size * 4))),
        hidden_bytes(place(a.intermediate_size * 4)),
        packed_hidden_bytes(place(kernels.token_bytes(down))) {}

  static int64_t place(int64_t bytes) { return round_up(bytes, kWorkspaceAlignment); }
  int64_t row_bytes() const { return token_bytes + hidden_bytes + packed_hidden_bytes; }

  PanelLayout up, down;
  int64_t up_panels, down_panels;
  int64_t panel_hidden;         ///< hidden values that a panel makes for a token
  int64_t token_bytes;          ///< a packed token, and later its result in the same place
  int64_t hidden_bytes;         ///< what it is inside the expert, float32
  int64_t packed_hidden_bytes;  ///< the same, packed
};

/// Row `row` of rows that hold floats.
inline float* floats(const PackedTokens& rows, int64_t row) {
  return reinterpret_cast<float*>(rows.tile(row));
}
inline int64_t float_stride(const PackedTokens& rows) {
  return rows.row_bytes / static_cast<int64_t>(sizeof(float));
}

/// The rows of one call in its workspace, from tokens to results; packs them.
class PackedRows {
 public:
  PackedRows(const GroupedExpertsAttributes& attributes, const GroupedExpertsTensors& tensors,
             const GroupedExpertsPlan& plan, const PanelKernels& kernels, const PackedSizes& sizes,
             char* workspace)
      : weighted_(attributes.weight_on == WeightOn::kInput),
        width_(attributes.hidden_size),
        tensors_(tensors),
        sorted_(plan.sorted),
        kernels_(kernels),
        sizes_(sizes),
        tokens_{workspace, sizes.token_bytes},
        hidden_{tokens_.tile(plan.sorted.num_rows()), sizes.hidden_bytes},
        packed_hidden_{hidden_.tile(plan.sorted.num_rows()), sizes.packed_hidden_bytes} {}

  const PackedTokens& tokens() const { return tokens_; }
  const PackedTokens& hidden() const { return hidden_; }
  const PackedTokens& packed_hidden() const { return packed_hidden_; }
  /// In the place of the tokens, which are done with by then.
  const PackedTokens& results() const { return tokens_; }

  /// Packs every token once, for all of its experts, if that pays: there are many, and nothing of
  /// an expert is in them. They wait in `y`, which holds nothing until results are added up.
  void pack_shared(ThreadPool& pool) {
    shared_ = kernels_.place_token != nullptr && !weighted_ && tensors_.top_k > 1 &&
              sorted_.num_rows() >= kLeastShared &&
              kernels_.token_bytes(sizes_.up) <= width_ * static_cast<int64_t>(sizeof(float));
    if (!shared_) return;
    parallel_chunks(pool, tensors_.num_tokens, kTaskTokens, [&](int64_t first, int64_t last) {
      for (int64_t t = first; t < last; ++t) {
        kernels_.pack_token(sizes_.up, tensors_.x + t * width_, 1.0f, 0, 1, shared_token(t));
      }
    });
  }

  void pack_tokens(const RowTile& tile) const {
    char* const to = tokens_.tile(tile.begin);
    for (int64_t m = 0; m < tile.size; ++m) {
      const int64_t pair = sorted_.pairs[tile.begin + m], token = pair / tensors_.top_k;
      if (shared_) {
        kernels_.place_token(sizes_.up, shared_token(token), m, tile.size, to);
      } else {
        kernels_.pack_token(sizes_.up, tensors_.x + token * width_,
                            weighted_ ? tensors_.expert_weights[pair] : 1.0f, m, tile.size, to);
      }
    }
  }

  void pack_hidden(const RowTile& tile) const {
    for (int64_t m = 0; m < tile.size; ++m) {
      kernels_.pack_token(sizes_.down, floats(hidden_, tile.begin + m), 1.0f, m, tile.size,
                          packed_hidden_.tile(tile.begin));
    }
  }

 private:
  /// Rows from which on a step of its own, which packs tokens once, pays.
  static constexpr int64_t kLeastShared = 128;
  static constexpr int64_t kTaskTokens = 8;

  char* shared_token(int64_t token) const {
    return reinterpret_cast<char*>(tensors_.y + token * width_);
  }

  const bool weighted_;
  const int64_t width_;
  const GroupedExpertsTensors& tensors_;
  const SortedPairs& sorted_;
  const PanelKernels& kernels_;
  const PackedSizes& sizes_;
  const PackedTokens tokens_, hidden_, packed_hidden_;
  bool shared_ = false;
};

}  // namespace moe_export::cpu
