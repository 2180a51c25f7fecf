#include "grouped_matmul.h"

#include <algorithm>
#include <vector>

#include "expert_kernels.h"
#include "panel_products.h"
#include "row_blocks.h"

namespace moe_export::cpu {
namespace {

bool is_packed(const GroupedMatMulAttributes& attributes) {
  return attributes.weight_layout == WeightLayout::kCpuV1;
}

PanelLayout layout_of(const GroupedMatMulAttributes& a) {
  return PanelLayout::of(a.weight_type, a.block_size, a.has_zero_point, a.in_features);
}

int64_t row_bytes(const GroupedMatMulAttributes& a, Isa isa) {
  if (!is_packed(a)) return padded_width(a.in_features) * static_cast<int64_t>(sizeof(float));
  return round_up(panel_kernels(isa, a.weight_type)->token_bytes(layout_of(a)),
                  kWorkspaceAlignment);
}

void multiply_row_major(const GroupedMatMulAttributes& attributes,
                        const GroupedMatMulTensors& tensors, const RowTiles& cut,
                        const ExpertKernels& kernels, float* packed, ThreadPool& pool) {
  const int64_t in = attributes.in_features, out = attributes.out_features;
  parallel_for(pool, cut.tiles.size(), [&](size_t i) {
    const RowTile& tile = cut.tiles[i];
    for (int64_t m = 0; m < tile.size; ++m) {
      pack_row(tensors.rows + (tile.begin + m) * in, 1.0f, in, m, tile.size,
               packed + tile.begin * padded_width(in));
    }
  });
  const auto project = [&](const ActiveExpert& active, int64_t first, int64_t count) {
    const int64_t row = active.expert * out + first;
    const LinearRows linear = {static_cast<const float*>(tensors.weight) + row * in,
                               tensors.bias ? tensors.bias + row : nullptr, count, in};
    for (int64_t i = active.first_tile; i < active.last_tile; ++i) {
      const RowTile& tile = cut.tiles[i];
      kernels.project(linear, packed + tile.begin * padded_width(in), tile.size,
                      tensors.y + tile.begin * out + first, out);
    }
  };
  for_each_block(pool, cut.experts, out, in, project);
}

void multiply_packed(const GroupedMatMulAttributes& attributes, const GroupedMatMulTensors& tensors,
                     const RowTiles& cut, Isa isa, char* workspace, ThreadPool& pool) {
  const int64_t in = attributes.in_features, out = attributes.out_features;
  const PanelKernels& kernels = *panel_kernels(isa, attributes.weight_type);
  const PanelLayout layout = layout_of(attributes);
  const PackedTokens tokens = {workspace, row_bytes(attributes, isa)};
  parallel_for(pool, cut.tiles.size(), [&](size_t i) {
    const RowTile& tile = cut.tiles[i];
    for (int64_t m = 0; m < tile.size; ++m) {
      kernels.pack_token(layout, tensors.rows + (tile.begin + m) * in, 1.0f, m, tile.size,
                         tokens.tile(tile.begin));
    }
  });
  const int64_t panels = num_panels(out, false);
  const int64_t size = std::clamp<int64_t>(kTaskPanelBytes / layout.panel_bytes, 1, panels);
  const int64_t tasks = (panels + size - 1) / size;
  parallel_for(pool, cut.experts.size() * tasks, [&](size_t i) {
    const ActiveExpert& active = cut.experts[i / tasks];
    const int64_t first = static_cast<int64_t>(i) % tasks * size;
    const char* const matrix =
        static_cast<const char*>(tensors.weight) + active.expert * panels * layout.panel_bytes;
    const PanelRange range = {matrix, first, std::min(first + size, panels), nullptr, 0};
    const float* const bias = tensors.bias ? tensors.bias + active.expert * out : nullptr;
    const auto finish = [&](int64_t panel, const RowTile& tile, const float* products) {
      const int64_t begin = panel * kPanelRows, count = std::min(kPanelRows, out - begin);
      for (int64_t m = 0; m < tile.size; ++m) {
        store_products(products + m * kPanelRows, bias ? bias + begin : nullptr, count,
                       tensors.y + (tile.begin + m) * out + begin);
      }
    };
    PanelProducts(kernels, layout, cut.num_rows(active))
        .run(range, cut.tiles.data() + active.first_tile, active.last_tile - active.first_tile,
             tokens, finish);
  });
}

}  // namespace

int64_t packed_matrix_bytes(const GroupedMatMulAttributes& attributes) {
  if (!is_packed(attributes)) return 0;
  return num_panels(attributes.out_features, false) * layout_of(attributes).panel_bytes;
}

size_t grouped_matmul_workspace_bytes(const GroupedMatMulAttributes& attributes, Isa isa,
                                      int64_t num_used_rows) {
  return static_cast<size_t>(num_used_rows) * static_cast<size_t>(row_bytes(attributes, isa));
}

void grouped_matmul(const GroupedMatMulAttributes& attributes, const GroupedMatMulTensors& tensors,
                    Isa isa, void* workspace, ThreadPool& pool) {
  const int64_t out = attributes.out_features;
  const std::vector<int64_t> ends(tensors.group_ends, tensors.group_ends + attributes.num_experts);
  if (is_packed(attributes)) {
    const int64_t max_tile = panel_kernels(isa, attributes.weight_type)->max_tile;
    multiply_packed(attributes, tensors, cut_tiles(ends, max_tile), isa,
                    static_cast<char*>(workspace), pool);
  } else {
    const ExpertKernels& kernels = expert_kernels(isa);
    multiply_row_major(attributes, tensors, cut_tiles(ends, kernels.max_tile), kernels,
                       static_cast<float*>(workspace), pool);
  }
  float* const unused = tensors.y + ends.back() * out;
  parallel_chunks(pool, tensors.num_rows - ends.back(), copied_rows(out),
                  [&](int64_t first, int64_t last) {
                    std::fill(unused + first * out, unused + last * out, 0.0f);
                  });
}

}  // namespace moe_export::cpu
