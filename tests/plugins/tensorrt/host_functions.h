#pragma once
#include <string>
#include <vector>

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

}  // namespace moe_export::test
