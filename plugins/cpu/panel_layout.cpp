#include "panel_layout.h"

#include <algorithm>

namespace moe_export::cpu {

PanelLayout PanelLayout::of(WeightType type, int64_t block_size, bool has_zero_point,
                            int64_t width) {
  constexpr int64_t kScales = kPanelRows * static_cast<int64_t>(sizeof(float));
  const int64_t padded = round_up(width, std::max(kColumnStep, block_size));
  PanelLayout layout = {type, block_size, has_zero_point, width, padded, 0, padded, 0, 0};
  int64_t bits = 32;
  switch (type) {
    case WeightType::kFp16:
    case WeightType::kBf16:
      bits = 16;
      break;
    case WeightType::kInt8:
      bits = 8;
      layout.header_bytes = kScales;
      break;
    case WeightType::kInt4:
      bits = 4;
      layout.unit_columns = block_size;
      layout.header_bytes = kScales + (has_zero_point ? 2 * kPanelRows : 0);
      break;
    case WeightType::kMxfp4:
      bits = 4;
      layout.unit_columns = 2 * kMxfp4Block;
      layout.header_bytes = 2 * kPanelRows;
      break;
    default:
      break;
  }
  layout.unit_bytes = layout.header_bytes + layout.unit_columns * kPanelRows * bits / 8;
  layout.panel_bytes = padded / layout.unit_columns * layout.unit_bytes;
  return layout;
}

}  // namespace moe_export::cpu
