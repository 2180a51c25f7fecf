// Which grouped matrix product a call launches: pure functions of sizes and types.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "element_type.h"
#include "spec/contract.h"

namespace moe_export::cuda {

/// How a matrix is stored and multiplied.
struct MatmulForm {
  ElementType element;
  WeightType weight_type;
  int64_t block_size;
  bool has_zero_point;
  bool gated;  ///< gate and up at once, with the activation
};

/// Rows of the tiles that there are kernels of, ascending; empty if this library does not compute
/// the form.
std::vector<int> tile_rows(const MatmulForm& form);

/// The tile that suits `num_rows` rows over `num_experts` experts best.
int choose_tile_rows(const MatmulForm& form, int64_t num_rows, int64_t num_experts);

/// The kernel's name, "gated_matmul_bf16_int4_m16" say.
std::string matmul_name(const MatmulForm& form, int tile_rows);

/// Columns of a weight that a kernel multiplies in one step.
constexpr int64_t kColumnStep = 64;

/// Columns of a weight as packed.
int64_t packed_columns(int64_t columns, int64_t block_size);

/// How an expert's matrix is packed, `weight_layout` = cuda_v1 (plugins/README.md).
struct PackedMatrix {
  int64_t columns;        ///< with those that are filled up
  int64_t element_bytes;  ///< of a weight, or of the byte that holds two of them
  int64_t scales_at;      ///< bytes before the scales
  int64_t zeros_at;       ///< bytes before the zero points
  int64_t bytes;          ///< of an expert
};
PackedMatrix packed_matrix(const MatmulForm& form, int64_t rows, int64_t columns);

}  // namespace moe_export::cuda
