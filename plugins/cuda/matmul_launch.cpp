#include "matmul_launch.h"

#include <algorithm>

#include "row_launches.h"

namespace moe_export::cuda {

bool serves_as_rows(const MatmulRows& rows, int64_t width) {
  return width % 16 == 0 && rows.stride % 16 == 0 &&
         reinterpret_cast<uintptr_t>(rows.data) % 16 == 0;
}

MatmulRows widen_rows(const MatmulRows& rows, int64_t num_rows, int64_t width, int64_t packed_width,
                      void* scratch, ElementType element, Stream stream) {
  if (width == packed_width && serves_as_rows(rows, width)) return rows;
  CopyRowsCall copy = {};
  copy.from = rows.data;
  copy.to = scratch;
  copy.from_stride = rows.stride;
  copy.to_stride = packed_width;
  copy.divisor = 1;
  copy.num_rows = static_cast<int32_t>(num_rows);
  copy.width = static_cast<int32_t>(width);
  copy.to_width = static_cast<int32_t>(packed_width);
  copy_rows(copy, element, stream);
  return {scratch, packed_width};
}

int64_t most_tiles(int64_t num_rows, int64_t num_experts, int tile_rows) {
  return num_rows / tile_rows + std::min(num_rows, num_experts);
}

void prepare_matmul(const MatmulForm& form) {
  for (const int rows : tile_rows(form)) find_kernel(matmul_name(form, rows));
}

void launch_matmul(const MatmulForm& form, int tile_rows, const MatmulCall& call, Stream stream) {
  const Kernel& kernel = find_kernel(matmul_name(form, tile_rows));
  const int64_t stored_rows = call.num_outputs * (form.gated ? 2 : 1);
  const PackedMatrix packed = packed_matrix(form, stored_rows, call.columns);
  const auto* const weight = static_cast<const unsigned char*>(call.weight);

  const void* x = call.x;
  const void* codes = weight;
  const void* scales = weight + packed.scales_at;
  const void* zeros = weight + packed.zeros_at;
  const void* bias = call.bias;
  const void* row_weights = call.row_weights;
  void* y = call.y;
  void* y_fp32 = call.y;
  const void* pairs = call.pairs;
  const void* ends = call.ends;
  const void* tiles = call.tiles;
  int64_t weight_stride = packed.bytes / packed.element_bytes;
  int64_t scale_stride = packed.bytes / static_cast<int64_t>(sizeof(float));
  int64_t zero_stride = packed.bytes;
  int64_t x_stride = call.x_stride, y_stride = call.y_stride;
  auto outputs = static_cast<int32_t>(call.num_outputs);
  auto columns = static_cast<int32_t>(packed.columns);
  auto y_width = static_cast<int32_t>(call.y_width);
  auto block = static_cast<int32_t>(form.block_size > 0 ? form.block_size : kColumnStep);
  auto top_k = static_cast<int32_t>(call.top_k);
  auto activation = static_cast<int32_t>(call.activation);
  int32_t use_zeros = form.has_zero_point, use_bias = call.bias != nullptr;
  int32_t use_row_weights = call.row_weights != nullptr, fp32_output = call.fp32_output;
  int32_t limits_output = call.limits_output;
  float alpha = call.alpha, up_offset = call.up_offset;
  float limit = call.limit > 0.0f ? call.limit : std::numeric_limits<float>::infinity();
  void* scratch = nullptr;  // Triton's own, which these kernels do without
  void* profile = nullptr;
  void* const arguments[] = {&x,
                             &codes,
                             &scales,
                             &zeros,
                             &bias,
                             &row_weights,
                             &y,
                             &y_fp32,
                             &pairs,
                             &ends,
                             &tiles,
                             &weight_stride,
                             &scale_stride,
                             &zero_stride,
                             &x_stride,
                             &y_stride,
                             &outputs,
                             &columns,
                             &y_width,
                             &block,
                             &top_k,
                             &activation,
                             &use_zeros,
                             &use_bias,
                             &use_row_weights,
                             &fp32_output,
                             &limits_output,
                             &alpha,
                             &limit,
                             &up_offset,
                             &scratch,
                             &profile};
  const int64_t outputs_tiles = (call.y_width + kernel.outputs - 1) / kernel.outputs;
  launch(kernel, {static_cast<uint32_t>(call.most_tiles * outputs_tiles)}, kernel.threads,
         kernel.shared_bytes, arguments, stream);
}

}  // namespace moe_export::cuda
