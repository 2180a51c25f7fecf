#include "grouped_matmul.h"

#include <algorithm>
#include <vector>

#include "expert_kernels.h"
#include "row_blocks.h"

namespace moe_export::cpu {

size_t grouped_matmul_workspace_bytes(const GroupedMatMulAttributes& attributes,
                                      int64_t num_used_rows) {
  const int64_t width = padded_width(attributes.in_features);
  return static_cast<size_t>(num_used_rows) * static_cast<size_t>(width) * sizeof(float);
}

void grouped_matmul(const GroupedMatMulAttributes& attributes, const GroupedMatMulTensors& tensors,
                    Isa isa, void* workspace, ThreadPool& pool) {
  const int64_t in = attributes.in_features, out = attributes.out_features;
  const ExpertKernels& kernels = expert_kernels(isa);
  const std::vector<int64_t> ends(tensors.group_ends, tensors.group_ends + attributes.num_experts);
  const RowTiles cut = cut_tiles(ends, kernels.max_tile);

  float* const packed = static_cast<float*>(workspace);
  parallel_for(pool, cut.tiles.size(), [&](size_t i) {
    const RowTile& tile = cut.tiles[i];
    for (int64_t m = 0; m < tile.size; ++m) {
      pack_row(tensors.rows + (tile.begin + m) * in, 1.0f, in, m, tile.size,
               packed + tile.begin * padded_width(in));
    }
  });
  const auto project = [&](const ActiveExpert& active, int64_t first, int64_t count) {
    const int64_t row = active.expert * out + first;
    const LinearRows linear = {tensors.weight + row * in,
                               tensors.bias ? tensors.bias + row : nullptr, count, in};
    for (int64_t i = active.first_tile; i < active.last_tile; ++i) {
      const RowTile& tile = cut.tiles[i];
      kernels.project(linear, packed + tile.begin * padded_width(in), tile.size,
                      tensors.y + tile.begin * out + first, out);
    }
  };
  for_each_block(pool, cut.experts, out, in, project);
  float* const unused = tensors.y + ends.back() * out;
  parallel_chunks(pool, tensors.num_rows - ends.back(), copied_rows(out),
                  [&](int64_t first, int64_t last) {
                    std::fill(unused + first * out, unused + last * out, 0.0f);
                  });
}

}  // namespace moe_export::cpu
