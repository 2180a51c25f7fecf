#pragma once
#include <algorithm>
#include <cstdint>

#include "aligned_memory.h"
#include "expert_plan.h"
#include "panel_kernels.h"

namespace moe_export::cpu {

/// Bytes of panels that are worth a task: its first panel is not read ahead.
inline constexpr int64_t kTaskPanelBytes = 1 << 19;

/// Packed rows of a call: row r's token is within the tile that holds it.
struct PackedTokens {
  char* data;
  int64_t row_bytes;  ///< of a token's place

  /// The tile whose first row is `begin`.
  char* tile(int64_t begin) const { return data + begin * row_bytes; }
};

/// Some panels of one expert's matrix.
struct PanelRange {
  const char* panels;  ///< the expert's first
  int64_t first;
  int64_t last;
  const char* after;  ///< what the thread reads next, or null
  int64_t after_bytes;
};

/// Writes `count` of one token's products, with their bias if there is one.
inline void store_products(const float* products, const float* bias, int64_t count, float* to) {
  for (int64_t c = 0; c < count; ++c) to[c] = bias ? products[c] + bias[c] : products[c];
}

/// Multiplies panels with tokens, on one thread; made for a task.
class PanelProducts {
 public:
  /// @param num_rows most tokens of all tiles of a run.
  PanelProducts(const PanelKernels& kernels, const PanelLayout& layout, int64_t num_rows)
      : kernels_(kernels),
        layout_(layout),
        num_rows_(num_rows),
        group_(panel_group(layout, num_rows * kernels.token_bytes(layout))),
        scratch_bytes_(kernels.scratch_bytes(layout)),
        scratch_(group_ * scratch_bytes_),
        out_(group_ * num_rows * kPanelRows * static_cast<int64_t>(sizeof(float))) {
    kernels_.begin();
  }
  ~PanelProducts() { kernels_.end(); }
  PanelProducts(const PanelProducts&) = delete;
  PanelProducts& operator=(const PanelProducts&) = delete;

  /// Calls `finish(panel, tile, products)` for every panel and tile; products are
  /// [tile.size, kPanelRows] and may be overwritten.
  template <class Finish>
  void run(const PanelRange& range, const RowTile* tiles, int64_t num_tiles,
           const PackedTokens& tokens, Finish&& finish) {
    for (int64_t p = range.first; p < range.last; p += group_) {
      const int64_t count = std::min(group_, range.last - p);
      const char* const panels = range.panels + p * layout_.panel_bytes;
      const int64_t num_steps = count * num_tiles * kernels_.num_steps(layout_);
      const int64_t next = std::min(group_, range.last - p - count) * layout_.panel_bytes;
      Ahead ahead = next == 0 ? Ahead::of(range.after, range.after_bytes, num_steps)
                              : Ahead::of(panels + count * layout_.panel_bytes, next, num_steps);
      multiply(panels, count, tiles, num_tiles, tokens, ahead);
      for (int64_t q = 0; q < count; ++q) {
        for (int64_t i = 0; i < num_tiles; ++i) finish(p + q, tiles[i], products(q, tiles, i));
      }
    }
  }

 private:
  /// Tokens, and panels that come next, that the second-level cache holds.
  static constexpr int64_t kCachedTokenBytes = 1 << 19, kCachedPanelBytes = 1 << 20;
  static constexpr int64_t kMostPanels = 4;

  /// How many panels are multiplied with a tile before the next tile comes: more than one where the
  /// tokens would be read from beyond the cache for each panel.
  static int64_t panel_group(const PanelLayout& layout, int64_t token_bytes) {
    if (token_bytes <= kCachedTokenBytes) return 1;
    return std::clamp<int64_t>(kCachedPanelBytes / layout.panel_bytes, 1, kMostPanels);
  }

  float* products(int64_t panel, const RowTile* tiles, int64_t i) const {
    const int64_t row = panel * num_rows_ + tiles[i].begin - tiles[0].begin;
    return static_cast<float*>(out_.data()) + row * kPanelRows;
  }

  void multiply(const char* panels, int64_t count, const RowTile* tiles, int64_t num_tiles,
                const PackedTokens& tokens, Ahead& ahead) {
    const int64_t width = layout_.padded_width;
    const bool whole = num_tiles == 1 && scratch_bytes_ == 0;
    const int64_t step = whole ? width : kernels_.chunk_columns;
    for (int64_t begin = 0; begin < width; begin += step) {
      const int64_t end = std::min(begin + step, width);
      // Back and forth: tiles of one size stay neighbours, and kernels are set up less often.
      const bool back = begin / step % 2 == 1;
      bool decoded[kMostPanels] = {};
      for (int64_t n = 0; n < num_tiles; ++n) {
        const int64_t i = back ? num_tiles - 1 - n : n;
        const char* const tile = tokens.tile(tiles[i].begin);
        for (int64_t q = 0; q < count; ++q) {
          char* const scratch = static_cast<char*>(scratch_.data()) + q * scratch_bytes_;
          const PanelCall call = {&layout_, panels + q * layout_.panel_bytes,
                                  tile,     tiles[i].size,
                                  begin,    end,
                                  scratch,  &decoded[q],
                                  &ahead};
          kernels_.multiply(call, products(q, tiles, i));
        }
      }
    }
  }

  const PanelKernels& kernels_;
  const PanelLayout& layout_;
  const int64_t num_rows_;
  const int64_t group_;  ///< panels that are multiplied together
  const int64_t scratch_bytes_;
  const AlignedMemory scratch_;
  const AlignedMemory out_;
};

}  // namespace moe_export::cpu
