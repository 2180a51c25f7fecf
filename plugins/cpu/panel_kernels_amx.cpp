// Products in tiles (AMX): bfloat16, and int8 for all quantized weights.
#include "amx_tiles.inl"
#include "dot_codes.inl"

namespace moe_export::cpu {
namespace {

void multiply_bf16(const PanelCall& call, float* out) {
  constexpr int64_t kColumns = 32, kStepBytes = kColumns / 2 * 128;
  const bool two = call.num_tokens > kTileRows;
  set_tiles({call.num_tokens, kTokenChunk});
  finish_writes();
  begin_sums(two, call.begin == 0, out);
  Ahead ahead = *call.ahead;
  const char* tokens = call.tokens + call.begin / kColumns * call.num_tokens * kTokenChunk;
  const char* weights = call.panel + call.begin / kColumns * kStepBytes;
  for (int64_t k = call.begin; k < call.end; k += kColumns) {
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

/// Codes less their zeros, [columns / 4][32][4] int8 from the first column of a call on, and the
/// scales of each block, [32].
struct SignedCodes {
  const char* codes;
  const float* scales;
  int64_t scale_stride;  ///< floats from one block's scales to the next
};

/// int8 weights are stored that way.
SignedCodes signed_codes(const PanelCall& call) {
  return {call.panel + call.layout->header_bytes + call.begin * kPanelRows,
          reinterpret_cast<const float*>(call.panel), 0};
}

// Weights of 4 bits are decoded to scratch: codes, then scales.

int64_t codes_bytes(const PanelLayout& layout) { return layout.padded_width * kPanelRows; }
int64_t decoded_bytes(const PanelLayout& layout) {
  return codes_bytes(layout) + num_token_blocks(layout) * kPanelRows * 4;
}
SignedCodes decoded_codes(const PanelCall& call) {
  const auto* const scales = call.scratch + codes_bytes(*call.layout);
  return {call.scratch, reinterpret_cast<const float*>(scales), kPanelRows};
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
  Codes codes(layout, call.panel, call.begin);
  for (int64_t begin = call.begin; begin < call.end; begin += block_columns) {
    const int64_t end = begin + block_columns < call.end ? begin + block_columns : call.end;
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

/// Multiplies the columns [begin, end) of one block.
inline void multiply_block(const PanelCall& call, int64_t begin, int64_t end, int64_t step,
                           const char* codes, Ahead& ahead, int32_t* dots) {
  const bool two = call.num_tokens > kTileRows;
  clear_sums(two);
  for (int64_t k = begin; k < end; k += step, codes += step * kPanelRows) {
    ahead.step();
    const int64_t chunk = k / kTokenChunk * (call.num_tokens * kTokenChunk);
    load_step(two, call.tokens + chunk + k % kTokenChunk, codes);
    _tile_dpbssd(SUM_00, TOKENS_0, WEIGHTS_0);
    _tile_dpbssd(SUM_01, TOKENS_0, WEIGHTS_1);
    if (two) {
      _tile_dpbssd(SUM_10, TOKENS_1, WEIGHTS_0);
      _tile_dpbssd(SUM_11, TOKENS_1, WEIGHTS_1);
    }
  }
  store_sums(two, dots);
}

/// Block after block; what a block adds is added up while the next one is multiplied.
void multiply_signed(const PanelCall& call, SignedCodes stored, Ahead& ahead, float* out) {
  const int64_t num_tokens = call.num_tokens, block = token_block(*call.layout);
  const int64_t step = block < kTokenChunk ? block : kTokenChunk;
  const TokenBlock* meta = token_blocks(*call.layout, call.tokens, num_tokens);
  meta += call.begin / block * num_tokens;
  alignas(64) int32_t dots[2][kTile * kPanelRows];
  if (call.begin == 0) {
    for (int64_t i = 0; i < num_tokens * kPanelRows; ++i) out[i] = 0.0f;
  }
  set_tiles({num_tokens, step});
  finish_writes();
  int current = 0;
  for (int64_t begin = call.begin; begin < call.end; begin += block, current ^= 1) {
    const int64_t end = begin + block < call.end ? begin + block : call.end;
    multiply_block(call, begin, end, step, stored.codes, ahead, dots[current]);
    stored.codes += block * kPanelRows;
    if (begin == call.begin) continue;
    add_dots(dots[current ^ 1], stored.scales, meta, num_tokens, out);
    stored.scales += stored.scale_stride;
    meta += num_tokens;
  }
  add_dots(dots[current ^ 1], stored.scales, meta, num_tokens, out);
}

void multiply_int8(const PanelCall& call, float* out) {
  if (call.num_tokens <= kVnniTile) return multiply_by_vnni<Int8Codes>(call, out);
  Ahead ahead = *call.ahead;
  multiply_signed(call, signed_codes(call), ahead, out);
  *call.ahead = ahead;
}

template <class Codes>
void multiply_decoded(const PanelCall& call, float* out) {
  if (call.num_tokens <= kVnniTile) return multiply_by_vnni<Codes>(call, out);
  Ahead ahead = *call.ahead;
  if (!*call.decoded) decode_panel<Codes>(call, ahead);
  *call.decoded = true;
  multiply_signed(call, decoded_codes(call), ahead, out);
  *call.ahead = ahead;
}

int64_t num_bf16_steps(const PanelLayout& layout) { return layout.padded_width / 32; }
int64_t num_int8_steps(const PanelLayout& layout) { return layout.padded_width / kTokenChunk; }
int64_t no_scratch(const PanelLayout&) { return 0; }

constexpr PanelKernels kBf16Kernels = {kTile,
                                       256,
                                       bf16_token_bytes,
                                       no_scratch,
                                       num_bf16_steps,
                                       pack_bf16_token,
                                       place_bf16_token,
                                       multiply_bf16,
                                       begin_tiles,
                                       end_tiles};

constexpr PanelKernels kInt8Kernels = {kTile,
                                       512,
                                       int8_token_bytes,
                                       no_scratch,
                                       num_int8_steps,
                                       pack_int8_token,
                                       place_int8_token,
                                       multiply_int8,
                                       begin_tiles,
                                       end_tiles};

template <class Codes>
constexpr PanelKernels kDecodedKernels = {kTile,
                                          512,
                                          int8_token_bytes,
                                          decoded_bytes,
                                          num_int8_steps,
                                          pack_int8_token,
                                          place_int8_token,
                                          multiply_decoded<Codes>,
                                          begin_tiles,
                                          end_tiles};

}  // namespace

const PanelKernels* amx_panel_kernels(WeightType type) {
  switch (type) {
    case WeightType::kBf16:
      return &kBf16Kernels;
    case WeightType::kInt8:
      return &kInt8Kernels;
    case WeightType::kInt4:
      return &kDecodedKernels<Int4Codes>;
    case WeightType::kMxfp4:
      return &kDecodedKernels<Mxfp4Codes>;
    default:
      return nullptr;
  }
}

}  // namespace moe_export::cpu
