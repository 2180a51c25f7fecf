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
        scratch_(kernels.scratch_bytes(layout)),
        out_(num_rows * kPanelRows * static_cast<int64_t>(sizeof(float))) {
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
    const int64_t num_steps = num_tiles * kernels_.num_steps(layout_);
    for (int64_t p = range.first; p < range.last; ++p) {
      const char* const panel = range.panels + p * layout_.panel_bytes;
      const bool last = p + 1 == range.last;
      Ahead ahead = last ? Ahead::of(range.after, range.after_bytes, num_steps)
                         : Ahead::of(panel + layout_.panel_bytes, layout_.panel_bytes, num_steps);
      multiply(panel, tiles, num_tiles, tokens, ahead);
      for (int64_t i = 0; i < num_tiles; ++i) finish(p, tiles[i], products(tiles, i));
    }
  }

 private:
  float* products(const RowTile* tiles, int64_t i) const {
    return static_cast<float*>(out_.data()) + (tiles[i].begin - tiles[0].begin) * kPanelRows;
  }

  void multiply(const char* panel, const RowTile* tiles, int64_t num_tiles,
                const PackedTokens& tokens, Ahead& ahead) {
    const int64_t width = layout_.padded_width;
    const bool whole = num_tiles == 1 && kernels_.scratch_bytes(layout_) == 0;
    const int64_t step = whole ? width : kernels_.chunk_columns;
    for (int64_t begin = 0; begin < width; begin += step) {
      const int64_t end = std::min(begin + step, width);
      // Back and forth: tiles of one size stay neighbours, and kernels are set up less often.
      const bool back = begin / step % 2 == 1;
      bool decoded = false;
      for (int64_t n = 0; n < num_tiles; ++n) {
        const int64_t i = back ? num_tiles - 1 - n : n;
        const char* const tile = tokens.tile(tiles[i].begin);
        const PanelCall call = {
            &layout_, panel, tile, tiles[i].size, begin, end, static_cast<char*>(scratch_.data()),
            &decoded, &ahead};
        kernels_.multiply(call, products(tiles, i));
      }
    }
  }

  const PanelKernels& kernels_;
  const PanelLayout& layout_;
  const AlignedMemory scratch_;
  const AlignedMemory out_;
};

}  // namespace moe_export::cpu
