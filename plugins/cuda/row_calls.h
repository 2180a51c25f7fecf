// Arguments of the kernels that copy and add rows.
#pragma once
#include <cstdint>

namespace moe_export::cuda {

/// Copies rows of another width, in another order.
struct CopyRowsCall {
  const void* from;  ///< [.., from_stride]; null to write zeros alone
  void* to;          ///< [num_rows, to_stride]
  /// [num_rows], where a row comes from, divided by `divisor`; null for the row itself.
  const int32_t* sources;
  const int32_t* num_used;  ///< rows from this one on become zero; null for none
  int64_t from_stride;
  int64_t to_stride;
  int32_t divisor;
  int32_t num_rows;
  int32_t width;     ///< columns to copy
  int32_t to_width;  ///< columns to write: zeros from `width` on
};

/// Names each row's expert.
struct RowExpertsCall {
  const int32_t* ends;   ///< [E]
  int32_t* row_experts;  ///< [num_rows], E - 1 for rows that no expert has
  int32_t num_experts;
  int32_t num_rows;
};

/// y[t] = Σ_k weights[t, k] · rows[row_map[t, k]].
struct ExpertCombineCall {
  const void* rows;             ///< [M, stride]
  const int32_t* row_map;       ///< [T, K], rows in [0, M); others add nothing
  const float* expert_weights;  ///< [T, K], or null for weights of 1
  void* y;                      ///< [T, N]
  int64_t stride;
  int32_t num_rows;  ///< M
  int32_t num_tokens;
  int32_t top_k;
  int32_t width;  ///< N
};

}  // namespace moe_export::cuda
