#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cuda/element_type.h"

namespace moe_export::test {

/// What the host functions of host_functions.cpp were last asked for.
struct HostCalls {
  int tile_rows = -1;                 ///< of the last grouped product
  std::vector<std::string> prepared;  ///< "GroupedExperts fp16" and so on, each once
  bool can_load = true;               ///< else every prepare_* fails
};
HostCalls& host_calls();

/// Rows of the tiles that they offer.
inline const std::vector<int> kTiles = {16, 64};

/// Values of activations as floats, and floats rounded to activations.
std::vector<float> to_floats(cuda::ElementType element, const void* values, int64_t count);
std::vector<char> from_floats(cuda::ElementType element, const std::vector<float>& values);

/// E matrices [rows, columns] in layout cuda_v1, for weights of the activations' type.
std::vector<char> pack_rows(cuda::ElementType element, const std::vector<float>& weight,
                            int64_t num_experts, int64_t rows, int64_t columns);
int64_t packed_bytes(cuda::ElementType element, int64_t rows, int64_t columns);

}  // namespace moe_export::test
