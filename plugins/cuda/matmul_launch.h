// Launches of the grouped matrix product (triton_kernels/grouped_matmul.py).
#pragma once
#include <cstdint>
#include <limits>

#include "launch.h"
#include "matmul_tile.h"

namespace moe_export::cuda {

/// One product. Strides are in elements; those of x and y are multiples of 16, and both begin at
/// multiples of 16 bytes.
struct MatmulCall {
  const void* x;
  const void* weight;        ///< [E, bytes], cuda_v1
  const float* bias;         ///< [E, rows of the weight], or null
  const float* row_weights;  ///< per pair, factors on x, if `top_k` is not 0; or null
  void* y;
  bool fp32_output;      ///< y is float32, not of the form's type
  const int32_t* pairs;  ///< sorted row → pair; read if `top_k` is not 0
  const int32_t* ends;   ///< [E]
  const int32_t* tiles;  ///< a `TileList`
  int64_t most_tiles;    ///< that there may be
  int64_t x_stride;
  int64_t y_stride;
  int64_t num_outputs;  ///< rows of the weight, of its gate if gated
  int64_t columns;      ///< of the weight, before packing
  int64_t y_width;      ///< columns of y to write, a multiple of 16: zeros from num_outputs on
  int64_t top_k;        ///< sorted row r reads row pairs[r] / top_k of x; 0 for row r itself
  Activation activation = Activation::kIdentity;
  float alpha = 1.0f;
  float limit = 0.0f;  ///< 0 for none
  bool limits_output = false;
  float up_offset = 0.0f;
};

/// Rows that a product reads or writes.
struct MatmulRows {
  const void* data;
  int64_t stride;
};

/// Whether a product may read or write them: aligned, and `width`, in elements, is a multiple
/// of 16.
bool serves_as_rows(const MatmulRows& rows, int64_t width);

/// `rows` themselves where they are `packed_width` wide already and serve, else a copy that is.
/// @param scratch [num_rows, packed_width] of the element's type.
MatmulRows widen_rows(const MatmulRows& rows, int64_t num_rows, int64_t width, int64_t packed_width,
                      void* scratch, ElementType element, Stream stream);

/// Rows of the smallest tile: what a workspace has to have room for.
constexpr int kLeastTileRows = 16;

/// Most tiles that so many rows of so many experts make.
int64_t most_tiles(int64_t num_rows, int64_t num_experts, int tile_rows);

/// Loads every tile's kernel.
void prepare_matmul(const MatmulForm& form);

void launch_matmul(const MatmulForm& form, int tile_rows, const MatmulCall& call, Stream stream);

}  // namespace moe_export::cuda
