#pragma once
#include <cstdint>

#include "isa.h"
#include "panel_layout.h"
#include "spec/contract.h"

namespace moe_export::cpu {

/// Floats per chunk. A tile of M rows of width K is packed as [ceil(K / kChunk)][M][kChunk], zeros
/// at the end: one stream with short offsets, whatever power of two the width is.
inline constexpr int64_t kChunk = 16;

/// `width` rounded up to whole chunks.
constexpr int64_t padded_width(int64_t width) { return (width + kChunk - 1) / kChunk * kChunk; }

/// Rows of a linear layer.
struct LinearRows {
  const float* weight;  ///< [rows, width], row-major
  const float* bias;    ///< [rows], or null
  int64_t rows;
  int64_t width;
};

/// What one instruction set provides. A token's result depends on that token only: neither on
/// `num_tokens` nor on its place in the tile.
struct ExpertKernels {
  /// Most tokens in one tile.
  int64_t max_tile;

  /// h = act(gate · x) · up · x and its variants, for some columns of one expert.
  /// @param gate   rows of the gate, as many as `up`; unused when ungated.
  /// @param tokens packed [num_tokens, up.width].
  /// @param hidden packed [num_tokens, up.rows], written with its padding.
  void (*project_up)(const GroupedExpertsAttributes& attributes, const LinearRows& gate,
                     const LinearRows& up, const float* tokens, int64_t num_tokens, float* hidden);

  /// linear · token + bias for some rows of one expert.
  /// @param tokens packed [num_tokens, linear.width].
  /// @param out    [num_tokens, linear.rows], rows `out_stride` floats apart.
  void (*project)(const LinearRows& linear, const float* tokens, int64_t num_tokens, float* out,
                  int64_t out_stride);

  /// The inner part of an expert on the products of one panel (panel_layout.h).
  /// @param products  [num_tokens, kPanelRows]; overwritten.
  /// @param gate_bias of the panel's rows, or null; unused when ungated.
  /// @param up_bias   of the panel's rows, or null.
  /// @param count     hidden values that the panel makes for a token.
  /// @param hidden    [num_tokens, count], rows `hidden_stride` floats apart.
  void (*finish_up)(const GroupedExpertsAttributes& attributes, float* products, int64_t num_tokens,
                    const float* gate_bias, const float* up_bias, int64_t count, float* hidden,
                    int64_t hidden_stride);

  /// y = Σ_k weights[k] · slots[k], in order of k; a null slot adds nothing.
  /// @param slots [top_k] pointers to [width].
  /// @param y     [width].
  void (*combine)(const float* const* slots, const float* weights, int64_t top_k, int64_t width,
                  float* y);

  /// values[i] = 1 / (1 + e^-values[i]).
  void (*sigmoid)(float* values, int64_t count);

  /// values[i] = e^values[i] / Σ e^values; NaN everywhere if any of them is NaN or infinity.
  void (*softmax)(float* values, int64_t count);
};

/// The kernels for `isa`.
const ExpertKernels& expert_kernels(Isa isa);

}  // namespace moe_export::cpu
