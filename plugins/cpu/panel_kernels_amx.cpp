// Products in tiles (AMX): bfloat16, and int8 for all quantized weights. A tile register holds 16
// rows of 64 bytes; 32 tokens times the two halves of a panel take four of them for sums.
#include "dot_codes.inl"

namespace moe_export::cpu {
namespace {

constexpr int64_t kTileRows = 16, kTile = 2 * kTileRows;
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
  constexpr int64_t kStride = kPanelRows * 4;
  char* const rows = static_cast<char*>(to);
  _tile_stored(SUM_00, rows, kStride);
  _tile_stored(SUM_01, rows + 64, kStride);
  if (!two) return;
  _tile_stored(SUM_10, rows + kTileRows * kStride, kStride);
  _tile_stored(SUM_11, rows + kTileRows * kStride + 64, kStride);
}

inline void load_step(bool two, const char* tokens, const char* weights) {
  _tile_loadd(WEIGHTS_0, weights, 128);
  _tile_loadd(WEIGHTS_1, weights + 64, 128);
  _tile_loadd(TOKENS_0, tokens, kTokenChunk);
  if (two) _tile_loadd(TOKENS_1, tokens + kTileRows * kTokenChunk, kTokenChunk);
}

void multiply_bf16(const PanelCall& call, float* out) {
  constexpr int64_t kColumns = 32, kStepBytes = kColumns / 2 * 128;
  const bool two = call.num_tokens > kTileRows;
  set_tiles({call.num_tokens, kTokenChunk});
  clear_sums(two);
  finish_writes();
  Ahead ahead = *call.ahead;
  const char *tokens = call.tokens, *weights = call.panel;
  for (int64_t k = 0; k < call.layout->padded_width; k += kColumns) {
    ahead.step();
    load_step(two, tokens, weights);
    _tile_dpbf16ps(SUM_00, TOKENS_0, WEIGHTS_0);
    _tile_dpbf16ps(SUM_01, TOKENS_0, WEIGHTS_1);
    if (two) {
      _tile_dpbf16ps(SUM_10, TOKENS_1, WEIGHTS_0);
      _tile_dpbf16ps(SUM_11, TOKENS_1, WEIGHTS_1);
    }
    tokens += call.num_tokens * kTokenChunk;
    weights += kStepBytes;
  }
  *call.ahead = ahead;
  store_sums(two, out);
}

// Scratch of quantized weights: codes less their zeros, [columns / 4][32][4] int8, and scales,
// [blocks][32] float32.

int64_t codes_bytes(const PanelLayout& layout) { return layout.padded_width * kPanelRows; }
int64_t int8_scratch_bytes(const PanelLayout& layout) {
  return codes_bytes(layout) + num_token_blocks(layout) * kPanelRows * 4;
}

/// Every byte of a row's four columns is the row's zero.
inline __m512i spread_bytes(__m512i zero) {
  return _mm512_mullo_epi32(zero, _mm512_set1_epi32(0x01010101));
}

template <class Codes>
void decode_panel(const PanelCall& call, Ahead& ahead) {
  const PanelLayout& layout = *call.layout;
  const int64_t block_columns = token_block(layout);
  char* to = call.scratch;
  auto* scales = reinterpret_cast<float*>(call.scratch + codes_bytes(layout));
  Codes codes{call.panel};
  for (int64_t begin = 0; begin < layout.padded_width; begin += block_columns) {
    const int64_t left = layout.padded_width - begin;
    const int64_t end = begin + (left < block_columns ? left : block_columns);
    BlockScales block;
    codes.begin_block(layout, block);
    for (int h = 0; h < 2; ++h, scales += 16) _mm512_storeu_ps(scales, block.scale[h]);
    const __m512i zero[2] = {spread_bytes(block.zero[0]), spread_bytes(block.zero[1])};
    for (int64_t k = begin; k < end; k += 32) {
      ahead.step();
      for (int i = 0; i < 32; i += 4) {
        __m512i w[2];
        codes.fetch(w);
        for (int h = 0; h < 2; ++h, to += 64) {
          _mm512_storeu_si512(to, _mm512_sub_epi8(w[h], zero[h]));
        }
      }
    }
  }
}

/// Adds one block's dot products to the sums in `out`.
inline void add_dots(const int32_t* dots, const float* scales, const TokenBlock* meta,
                     int64_t num_tokens, float* out) {
  const __m512 scale[2] = {_mm512_loadu_ps(scales), _mm512_loadu_ps(scales + 16)};
  for (int64_t m = 0; m < num_tokens; ++m, dots += kPanelRows, out += kPanelRows) {
    for (int h = 0; h < 2; ++h) {
      const __m512 acc = _mm512_loadu_ps(out + h * 16);
      const __m512i dot = _mm512_loadu_si512(dots + h * 16);
      _mm512_storeu_ps(out + h * 16, add_block(acc, dot, scale[h], meta[m].scale));
    }
  }
}

void multiply_decoded(const PanelCall& call, Ahead& ahead, float* out) {
  const PanelLayout& layout = *call.layout;
  const int64_t num_tokens = call.num_tokens, block_columns = token_block(layout);
  const int64_t step = block_columns < kTokenChunk ? block_columns : kTokenChunk;
  const bool two = num_tokens > kTileRows;
  const TokenBlock* meta = token_blocks(layout, call.tokens, num_tokens);
  const char* weights = call.scratch;
  const auto* scales = reinterpret_cast<const float*>(call.scratch + codes_bytes(layout));
  alignas(64) int32_t dots[kTile * kPanelRows];
  for (int64_t i = 0; i < num_tokens * kPanelRows; ++i) out[i] = 0.0f;
  set_tiles({num_tokens, step});
  finish_writes();
  for (int64_t begin = 0; begin < layout.padded_width; begin += block_columns) {
    const int64_t left = layout.padded_width - begin;
    const int64_t end = begin + (left < block_columns ? left : block_columns);
    clear_sums(two);
    for (int64_t k = begin; k < end; k += step, weights += step * kPanelRows) {
      ahead.step();
      load_step(two, call.tokens + k / kTokenChunk * (num_tokens * kTokenChunk) + k % kTokenChunk,
                weights);
      _tile_dpbssd(SUM_00, TOKENS_0, WEIGHTS_0);
      _tile_dpbssd(SUM_01, TOKENS_0, WEIGHTS_1);
      if (two) {
        _tile_dpbssd(SUM_10, TOKENS_1, WEIGHTS_0);
        _tile_dpbssd(SUM_11, TOKENS_1, WEIGHTS_1);
      }
    }
    store_sums(two, dots);
    add_dots(dots, scales, meta, num_tokens, out);
    meta += num_tokens;
    scales += kPanelRows;
  }
}

template <class Codes>
void multiply_int8(const PanelCall& call, float* out) {
  if (call.num_tokens <= kVnniTile) return multiply_by_vnni<Codes>(call, out);
  Ahead ahead = *call.ahead;
  if (!*call.decoded) decode_panel<Codes>(call, ahead);
  *call.decoded = true;
  multiply_decoded(call, ahead, out);
  *call.ahead = ahead;
}

int64_t num_bf16_steps(const PanelLayout& layout) { return layout.padded_width / 32; }
int64_t num_int8_steps(const PanelLayout& layout) { return layout.padded_width / kTokenChunk; }
int64_t no_scratch(const PanelLayout&) { return 0; }

constexpr PanelKernels kBf16Kernels = {kTile,          bf16_token_bytes, no_scratch,
                                       num_bf16_steps, pack_bf16_token,  multiply_bf16,
                                       begin_tiles,    end_tiles};

template <class Codes>
constexpr PanelKernels kInt8Kernels = {kTile,          int8_token_bytes, int8_scratch_bytes,
                                       num_int8_steps, pack_int8_token,  multiply_int8<Codes>,
                                       begin_tiles,    end_tiles};

}  // namespace

const PanelKernels* amx_panel_kernels(WeightType type) {
  switch (type) {
    case WeightType::kBf16:
      return &kBf16Kernels;
    case WeightType::kInt8:
      return &kInt8Kernels<Int8Codes>;
    case WeightType::kInt4:
      return &kInt8Kernels<Int4Codes>;
    case WeightType::kMxfp4:
      return &kInt8Kernels<Mxfp4Codes>;
    default:
      return nullptr;
  }
}

}  // namespace moe_export::cpu
