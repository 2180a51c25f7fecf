#include "matmul_tile.h"

#include <algorithm>

namespace moe_export::cuda {
namespace {

bool is_stored_as(WeightType weight, ElementType element) {
  return (weight == WeightType::kFp32 && element == ElementType::kFp32) ||
         (weight == WeightType::kFp16 && element == ElementType::kFp16) ||
         (weight == WeightType::kBf16 && element == ElementType::kBf16);
}

constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

std::vector<int> tile_rows(const MatmulForm& form) {
  if (is_stored_as(form.weight_type, form.element)) {
    if (form.element == ElementType::kFp32) return {16};
    return {16, 64, 128};
  }
  if (form.element == ElementType::kFp32) return {};
  if (form.weight_type == WeightType::kInt8) return {16, 64, 128};
  if (form.weight_type == WeightType::kInt4 || form.weight_type == WeightType::kFp8) {
    return {16, 64};
  }
  return {};
}

int choose_tile_rows(const MatmulForm& form, int64_t num_rows, int64_t num_experts) {
  const std::vector<int> rows = tile_rows(form);
  const int64_t share = num_rows / std::max<int64_t>(1, std::min(num_rows, num_experts));
  // A tile that is half full costs less than two that are.
  for (const int tile : rows) {
    if (2 * share <= 3 * tile) return tile;
  }
  return rows.back();
}

std::string matmul_name(const MatmulForm& form, int tile_rows) {
  std::string stored(EnumNames<WeightType>::kValues[static_cast<size_t>(form.weight_type)]);
  if (form.weight_type == WeightType::kInt4 && form.block_size == 32) stored += "b32";
  return std::string(form.gated ? "gated_matmul_" : "matmul_") +
         std::string(name_of(form.element)) + "_" + stored + "_m" + std::to_string(tile_rows);
}

int64_t packed_columns(int64_t columns, int64_t block_size) {
  return round_up(columns, std::max<int64_t>(kColumnStep, block_size));
}

PackedMatrix packed_matrix(const MatmulForm& form, int64_t rows, int64_t columns) {
  PackedMatrix packed = {};
  packed.columns = packed_columns(columns, form.block_size);
  const int64_t codes = rows * packed.columns;
  switch (form.weight_type) {
    case WeightType::kFp32:
      packed.element_bytes = 4;
      break;
    case WeightType::kFp16:
    case WeightType::kBf16:
      packed.element_bytes = 2;
      break;
    default:
      packed.element_bytes = 1;
  }
  const bool has_blocks = form.weight_type == WeightType::kInt4;
  packed.scales_at = has_blocks ? codes / 2 : codes * packed.element_bytes;
  const bool has_scales =
      has_blocks || form.weight_type == WeightType::kInt8 || form.weight_type == WeightType::kFp8;
  const int64_t scales = has_blocks ? codes / form.block_size : has_scales ? rows : 0;
  packed.zeros_at = packed.scales_at + scales * 4;
  packed.bytes = round_up(packed.zeros_at + (form.has_zero_point ? scales : 0), 128);
  return packed;
}

}  // namespace moe_export::cuda
