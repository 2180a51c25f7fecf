// What libmoe_export_cuda.so offers to adapters that open it where it lies beside them: they need
// no CUDA to be built or loaded. Both come from one build, as their versions say.
#pragma once
#include <cstddef>

#include "tensors.h"

namespace moe_export::gpu {

/// One op. `attributes` is its record of spec/contract.h. A function returns null, or why not: the
/// text stays until the thread's next call, and no exception leaves it.
struct GpuOp {
  const char* op_type;

  /// Attributes that keep to the contract, but not to what the library computes.
  const char* (*check_attributes)(const void* attributes);

  /// Types and shapes; their data is not read.
  const char* (*check_inputs)(const void* attributes, const TensorRef* inputs, size_t num_inputs);

  /// Launches the op's kernels on the stream. Scratch comes and goes in the stream's order.
  const char* (*run)(const void* attributes, const TensorRef* inputs, size_t num_inputs,
                     void* const* outputs, cuda::Stream stream);
};

/// All ops of the contract.
struct GpuLibrary {
  const char* version;
  const GpuOp* ops;
  size_t num_ops;
};

/// The name and type of the library's function.
inline constexpr char kGpuLibraryFunction[] = "moe_export_gpu_library";
using GpuLibraryFunction = const GpuLibrary* (*)();

}  // namespace moe_export::gpu
