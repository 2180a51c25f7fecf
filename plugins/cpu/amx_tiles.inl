// Tile registers (AMX): 16 rows of 64 bytes each. 32 tokens times the two halves of a panel take
// four of them for sums. For the one file that is compiled for them.
#pragma once
#include "dot_tokens.inl"

namespace moe_export::cpu {
namespace {

constexpr int64_t kTileRows = 16, kTile = 2 * kTileRows;
constexpr int64_t kSumStride = kPanelRows * 4;
// The tile registers, numbers that the intrinsics want literally: sums are [tokens][half].
#define SUM_00 0
#define SUM_01 1
#define SUM_10 2
#define SUM_11 3
#define TOKENS_0 4
#define TOKENS_1 5
#define WEIGHTS_0 6
#define WEIGHTS_1 7

/// What the tile registers of this thread are set up for; no tokens: for nothing.
struct TileShape {
  int64_t num_tokens;
  int64_t step_bytes;  ///< of a token in one product

  bool operator==(const TileShape& other) const {
    return num_tokens == other.num_tokens && step_bytes == other.step_bytes;
  }
};
thread_local TileShape current_shape = {0, 0};

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

/// The intrinsics do not tell GCC what memory they read: it must be written before.
inline void finish_writes() { asm volatile("" ::: "memory"); }

void set_tiles(const TileShape& shape) {
  if (current_shape == shape) return;
  TileConfig config;
  const int64_t first = shape.num_tokens < kTileRows ? shape.num_tokens : kTileRows;
  // A second tile of no rows would be an error; one row of it is set up and never used.
  const int64_t second = shape.num_tokens > kTileRows ? shape.num_tokens - kTileRows : 1;
  const auto set = [&](int tile, int64_t rows, int64_t bytes) {
    config.rows[tile] = static_cast<uint8_t>(rows);
    config.bytes[tile] = static_cast<uint16_t>(bytes);
  };
  for (const int tile : {SUM_00, SUM_01}) set(tile, first, 64);
  for (const int tile : {SUM_10, SUM_11}) set(tile, second, 64);
  set(TOKENS_0, first, shape.step_bytes);
  set(TOKENS_1, second, shape.step_bytes);
  for (const int tile : {WEIGHTS_0, WEIGHTS_1}) set(tile, shape.step_bytes / 4, 64);
  finish_writes();
  _tile_loadconfig(&config);
  current_shape = shape;
}

void begin_tiles() { current_shape = {0, 0}; }
void end_tiles() {
  if (current_shape.num_tokens > 0) _tile_release();
  current_shape = {0, 0};
}

inline void clear_sums(bool two) {
  _tile_zero(SUM_00);
  _tile_zero(SUM_01);
  if (!two) return;
  _tile_zero(SUM_10);
  _tile_zero(SUM_11);
}

/// Stores sums as [num_tokens][kPanelRows] values of four bytes.
inline void store_sums(bool two, void* to) {
  char* const rows = static_cast<char*>(to);
  _tile_stored(SUM_00, rows, kSumStride);
  _tile_stored(SUM_01, rows + 64, kSumStride);
  if (!two) return;
  _tile_stored(SUM_10, rows + kTileRows * kSumStride, kSumStride);
  _tile_stored(SUM_11, rows + kTileRows * kSumStride + 64, kSumStride);
}

/// Sums to go on with: those in `from`, or zero.
inline void begin_sums(bool two, bool zero, const void* from) {
  if (zero) return clear_sums(two);
  const char* const rows = static_cast<const char*>(from);
  _tile_loadd(SUM_00, rows, kSumStride);
  _tile_loadd(SUM_01, rows + 64, kSumStride);
  if (!two) return;
  _tile_loadd(SUM_10, rows + kTileRows * kSumStride, kSumStride);
  _tile_loadd(SUM_11, rows + kTileRows * kSumStride + 64, kSumStride);
}

inline void load_step(bool two, const char* tokens, const char* weights) {
  _tile_loadd(WEIGHTS_0, weights, 128);
  _tile_loadd(WEIGHTS_1, weights + 64, 128);
  _tile_loadd(TOKENS_0, tokens, kTokenChunk);
  if (two) _tile_loadd(TOKENS_1, tokens + kTileRows * kTokenChunk, kTokenChunk);
}

}  // namespace
}  // namespace moe_export::cpu
