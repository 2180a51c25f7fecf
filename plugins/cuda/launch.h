// The seam between host functions and kernels. launch_driver.cpp launches on a GPU through its
// driver; the tests have another one, which runs the kernels' PTX on the CPU.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace moe_export::cuda {

/// A cudaStream_t, which is a CUstream.
using Stream = void*;

/// A kernel cannot be found, loaded or launched.
class CudaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A kernel for the current device.
struct Kernel {
  std::string name;
  uint32_t threads;       ///< of a block, where the kernel fixes it; else 0
  uint32_t shared_bytes;  ///< of a block, where the kernel fixes it; else 0
  uint32_t outputs;       ///< rows of the weight per block, of a matrix product; else 0
  void* function;         ///< the seam's own
};

struct Grid {
  uint32_t x;
  uint32_t y = 1;
};

/// Compute capability of the current device, 90 for 9.0.
int device_capability();

/// The kernel of that name, loaded for the current device. The first call for a name loads it,
/// which must not happen while a stream is captured.
/// @throws CudaError there is none for this device, naming both.
const Kernel& find_kernel(std::string_view name);

/// Launches blocks of `threads` threads and `shared_bytes` of dynamic shared memory.
/// @param arguments a pointer to each argument, in order.
/// @throws CudaError the driver refuses.
void launch(const Kernel& kernel, Grid grid, uint32_t threads, uint32_t shared_bytes,
            void* const* arguments, Stream stream);

}  // namespace moe_export::cuda
