// Kernels that copy and add rows.
#pragma once
#include "device.h"
#include "row_calls.h"

namespace moe_export::cuda {

/// Grid: (num_rows, ceil(to_width / threads)).
template <class Element>
__device__ void copy_rows(const CopyRowsCall& call) {
  const int row = blockIdx.x, column = blockIdx.y * blockDim.x + threadIdx.x;
  if (column >= call.to_width) return;
  const bool used = !call.num_used || row < *call.num_used;
  if (!call.from && used) return;
  Element value;
  from_float(0.0f, value);
  if (column < call.width && used) {
    const int64_t source = (call.sources ? call.sources[row] : row) / call.divisor;
    value = static_cast<const Element*>(call.from)[source * call.from_stride + column];
  }
  static_cast<Element*>(call.to)[row * call.to_stride + column] = value;
}

/// Grid: ceil(num_rows / threads).
inline __device__ void name_row_experts(const RowExpertsCall& call) {
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= call.num_rows) return;
  int begin = 0, end = call.num_experts - 1;  // the first expert whose rows end behind this one
  while (begin < end) {
    const int middle = (begin + end) / 2;
    if (call.ends[middle] > row) {
      end = middle;
    } else {
      begin = middle + 1;
    }
  }
  call.row_experts[row] = begin;
}

/// In float32 and in order of k: the same bits every time. Grid: (T, ceil(N / threads)).
template <class Row, class Output>
__device__ void combine_rows(const ExpertCombineCall& call) {
  const int64_t token = blockIdx.x;
  const int column = blockIdx.y * blockDim.x + threadIdx.x;
  if (column >= call.width) return;
  const int32_t* const map = call.row_map + token * call.top_k;
  float sum = 0.0f;
  for (int k = 0; k < call.top_k; ++k) {
    if (map[k] < 0 || map[k] >= call.num_rows) continue;
    const auto* const row = static_cast<const Row*>(call.rows) + map[k] * call.stride;
    const float weight = call.expert_weights ? call.expert_weights[token * call.top_k + k] : 1.0f;
    sum = fmaf(to_float(row[column]), weight, sum);
  }
  from_float(sum, static_cast<Output*>(call.y)[token * call.width + column]);
}

}  // namespace moe_export::cuda
