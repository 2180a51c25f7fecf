#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "element_type.h"
#include "launch.h"
#include "spec/contract.h"

namespace moe_export::cuda {

/// Tensors of one call in device memory. M rows sorted by expert, E experts; all row-major. M must
/// fit an int32.
struct GroupedMatMulTensors {
  int64_t num_rows;
  ElementType element;        ///< of rows and y
  const void* rows;           ///< [M, in_features]
  const void* weight;         ///< packed, cuda_v1
  const int32_t* group_ends;  ///< [E], ascending within [0, M]; what lies outside is clamped
  const float* bias;          ///< [E, out_features], or null
  void* y;                    ///< [M, out_features], zero from row group_ends[E - 1] on
};

/// Rows of the tiles that a call may choose from, ascending; empty if this library does not compute
/// this matrix with rows of that type.
std::vector<int> grouped_matmul_tiles(const GroupedMatMulAttributes& attributes,
                                      ElementType element);

/// Bytes of one expert's packed weight.
int64_t packed_matrix_bytes(const GroupedMatMulAttributes& attributes, ElementType element);

/// Bytes of scratch that a call of at most so many rows needs, whichever its tile.
size_t grouped_matmul_workspace_bytes(const GroupedMatMulAttributes& attributes,
                                      ElementType element, int64_t num_rows);

/// Loads what `grouped_matmul` launches.
void prepare_grouped_matmul(const GroupedMatMulAttributes& attributes, ElementType element);

/// Computes `GroupedMatMul`; sums in float32, the same bits every time.
/// @param tile_rows one of `grouped_matmul_tiles`, or 0 for the one that suits the call.
/// @param workspace `grouped_matmul_workspace_bytes`, aligned to 256 bytes.
void grouped_matmul(const GroupedMatMulAttributes& attributes, const GroupedMatMulTensors& tensors,
                    int tile_rows, void* workspace, Stream stream);

}  // namespace moe_export::cuda
