#pragma once
#include <cstdint>

#include "spec/contract.h"

namespace moe_export::cpu {

/// Rows of one panel: an up projection that is gated has 16 rows of the gate and 16 of up.
inline constexpr int64_t kPanelRows = 32;
/// Columns are padded to whole multiples: 64 bytes of the narrowest activations.
inline constexpr int64_t kColumnStep = 64;
/// Columns that share a scale of mxfp4.
inline constexpr int64_t kMxfp4Block = 32;

/// `value` rounded up to a multiple of `step`.
constexpr int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

/// How layout `cpu_v1` stores a matrix (plugins/README.md): panels of `kPanelRows` rows, each one
/// stream of bytes; scales and zero points lie in front of the weights that they belong to.
struct PanelLayout {
  WeightType type;
  int64_t block_size;    ///< columns per scale; 0 for one scale per row, or none
  bool has_zero_point;   ///< int4 with zero points
  int64_t width;         ///< columns of the matrix
  int64_t padded_width;  ///< columns that are stored
  int64_t header_bytes;  ///< in front of each unit: scales, zero points
  int64_t unit_columns;  ///< columns behind one header
  int64_t unit_bytes;    ///< of a header and its columns
  int64_t panel_bytes;

  /// A matrix of `width` columns.
  static PanelLayout of(WeightType type, int64_t block_size, bool has_zero_point, int64_t width);

  /// Bytes of one column of a panel times four: every type has whole bytes for four columns.
  int64_t quad_bytes() const { return (unit_bytes - header_bytes) / (unit_columns / 4); }
};

/// Panels of a matrix of `rows` rows; of a gated up projection, `rows` is one of its halves.
constexpr int64_t num_panels(int64_t rows, bool gated) {
  return round_up(rows, gated ? kPanelRows / 2 : kPanelRows) /
         (gated ? kPanelRows / 2 : kPanelRows);
}

}  // namespace moe_export::cpu
