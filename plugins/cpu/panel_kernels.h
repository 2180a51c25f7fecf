#pragma once
#include <cstdint>

#include "isa.h"
#include "panel_layout.h"
#include "spec/contract.h"

namespace moe_export::cpu {

/// What is read into the second-level cache while a panel is multiplied: the bytes that come after
/// it, as several streams, which memory answers faster than one (measured: 25 % more per second).
struct Ahead {
  static constexpr int64_t kStreams = 4;
  static constexpr int64_t kLine = 64;
  static constexpr int64_t kOne = 1 << 16;  ///< one line, where lines are fractions

  const char* next = nullptr;  ///< the first stream's next line
  const char* end = nullptr;   ///< of the first stream
  int64_t stream = 0;          ///< bytes from one stream to the next
  int64_t step_lines = 0;      ///< lines of each stream per step, in parts of `kOne`
  int64_t due_lines = 0;       ///< that are still to be read, in parts of `kOne`

  /// @param bytes what to read from `from` on, evenly in `num_steps` steps.
  static Ahead of(const char* from, int64_t bytes, int64_t num_steps) {
    if (from == nullptr) return {};
    const int64_t stream = round_up((bytes + kStreams - 1) / kStreams, kLine);
    return {from, from + stream, stream, (stream / kLine * kOne + num_steps - 1) / num_steps, 0};
  }

  void step() {
    for (due_lines += step_lines; due_lines >= kOne && next < end; due_lines -= kOne) {
      for (int64_t s = 0; s < kStreams; ++s) __builtin_prefetch(next + s * stream, 0, 2);
      next += kLine;
    }
  }
};

/// Some columns of one panel and the tokens that they are multiplied with.
struct PanelCall {
  const PanelLayout* layout;
  const char* panel;
  const char* tokens;  ///< a tile, as `pack_token` left it
  int64_t num_tokens;  ///< at most `max_tile`
  int64_t begin;       ///< first column, a multiple of `chunk_columns`
  int64_t end;         ///< past the last column
  char* scratch;       ///< `scratch_bytes(layout)`
  bool* decoded;       ///< whether `scratch` holds these columns; set by a call that fills it
  Ahead* ahead;        ///< moved on by `num_steps(layout)` steps or more
};

/// What one instruction set provides for one type of weights. A token's result depends on that
/// token only: neither on `num_tokens` nor on its place in the tile.
struct PanelKernels {
  /// Most tokens in one tile.
  int64_t max_tile;

  /// Columns whose weights, and a tile's tokens, fit the first-level cache: with several tiles it
  /// is worth going on in such steps. A multiple of 128, of every block.
  int64_t chunk_columns;

  /// Bytes of one token in a tile.
  int64_t (*token_bytes)(const PanelLayout& layout);

  /// Bytes of scratch for a call.
  int64_t (*scratch_bytes)(const PanelLayout& layout);

  /// Steps of `multiply`, at least, at which it reads ahead.
  int64_t (*num_steps)(const PanelLayout& layout);

  /// Writes weight · row, a token, to place `place` of a tile of `tile_size` tokens.
  /// @param row [layout.width].
  void (*pack_token)(const PanelLayout& layout, const float* row, float weight, int64_t place,
                     int64_t tile_size, char* tile);

  /// Copies a token that was packed alone, in a tile of 1, to such a place; null where packing it
  /// again costs no more.
  void (*place_token)(const PanelLayout& layout, const char* packed, int64_t place,
                      int64_t tile_size, char* tile);

  /// out[m][r] += row r of the panel · token m, over some columns; from zero where they are the
  /// first. How the columns are cut does not change the result.
  /// @param out [num_tokens, kPanelRows].
  void (*multiply)(const PanelCall& call, float* out);

  /// Called before and after the calls that a thread makes in one task.
  void (*begin)();
  void (*end)();
};

/// The kernels for `isa` and weights of `type`.
/// @return null if this library has none.
const PanelKernels* panel_kernels(Isa isa, WeightType type);

}  // namespace moe_export::cpu
