#pragma once
#include <cstddef>

#include "cuda/launch.h"

namespace moe_export::test {

/// What memory was asked for, of stream_memory_on_host.cpp.
struct StreamMemoryUse {
  cuda::Stream stream = nullptr;  ///< the last one
  size_t num_allocated = 0;
  size_t num_freed = 0;
};
StreamMemoryUse& stream_memory_use();

}  // namespace moe_export::test
