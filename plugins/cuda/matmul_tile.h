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

/// Columns of a weight as packed, `weight_layout` = cuda_v1.
int64_t packed_columns(int64_t columns, int64_t block_size);

/// Bytes of one expert's [rows, columns] matrix as packed, `weight_layout` = cuda_v1.
int64_t packed_matrix_bytes(const MatmulForm& form, int64_t rows, int64_t columns);

}  // namespace moe_export::cuda
