#pragma once
#include <cstddef>

#include "cuda/launch.h"

namespace moe_export::gpu {

/// Device memory that comes and goes in the order of a stream: what was launched before the object
/// ends may use it, and calls on several streams never share it. Allowed while a stream is
/// captured.
class StreamMemory {
 public:
  /// @throws cuda::CudaError there is none.
  StreamMemory(size_t bytes, cuda::Stream stream);
  ~StreamMemory();
  StreamMemory(const StreamMemory&) = delete;
  StreamMemory& operator=(const StreamMemory&) = delete;

  /// Null for no bytes.
  void* data() const { return data_; }

 private:
  cuda::Stream stream_;
  void* data_ = nullptr;
};

}  // namespace moe_export::gpu
