#pragma once
#include <cstddef>
#include <cstdint>

#include "isa.h"
#include "parallel.h"
#include "spec/contract.h"

namespace moe_export::cpu {

/// Tensors of one call. M rows sorted by expert, E experts; all row-major.
struct GroupedMatMulTensors {
  int64_t num_rows;
  const float* rows;          ///< [M, in_features]
  const void* weight;         ///< [E, out_features, in_features]; or packed
  const int32_t* group_ends;  ///< [E], ascending within [0, M]
  const float* bias;          ///< [E, out_features], or null
  float* y;                   ///< [M, out_features]
};

/// Bytes of one expert's packed weight; 0 for row-major ones.
int64_t packed_matrix_bytes(const GroupedMatMulAttributes& attributes);

/// Bytes of scratch that a call with `num_used_rows` = group_ends[E - 1] needs.
size_t grouped_matmul_workspace_bytes(const GroupedMatMulAttributes& attributes, Isa isa,
                                      int64_t num_used_rows);

/// Computes `GroupedMatMul`: row-major weights in float32, packed ones (panel_layout.h) as their
/// kernels do (panel_kernels.h). The bits of a row of `y` depend on that row and its
/// expert, and on `isa`; not on the pool nor on the other rows.
/// @param workspace `grouped_matmul_workspace_bytes` bytes, aligned to `kWorkspaceAlignment`.
void grouped_matmul(const GroupedMatMulAttributes& attributes, const GroupedMatMulTensors& tensors,
                    Isa isa, void* workspace, ThreadPool& pool);

}  // namespace moe_export::cpu
