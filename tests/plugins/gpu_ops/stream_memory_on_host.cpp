// Scratch in the host's memory, at an odd address.
#include "stream_memory_on_host.h"

#include "gpu_ops/stream_memory.h"

namespace moe_export {

test::StreamMemoryUse& test::stream_memory_use() {
  static StreamMemoryUse use;
  return use;
}

namespace gpu {

StreamMemory::StreamMemory(size_t bytes, cuda::Stream stream) : stream_(stream) {
  test::stream_memory_use().stream = stream;
  if (bytes == 0) return;
  ++test::stream_memory_use().num_allocated;
  data_ = new char[bytes + 1] + 1;
}

StreamMemory::~StreamMemory() {
  if (data_ == nullptr) return;
  ++test::stream_memory_use().num_freed;
  delete[] (static_cast<char*>(data_) - 1);
}

}  // namespace gpu
}  // namespace moe_export
