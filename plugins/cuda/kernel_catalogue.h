// The kernels that are embedded in the library, for every target (compile_kernels.py).
#pragma once
#include <string_view>

#include "launch.h"

namespace moe_export::cuda {

/// Capability from which on there are kernels.
constexpr int kLeastCapability = 80;

/// A kernel for one target.
struct CatalogueEntry {
  std::string_view name;
  const char* entry;      ///< its function in the image
  int target;             ///< compute capability, or 0 for PTX
  uint32_t threads;       ///< of a block, or 0: the launch decides
  uint32_t shared_bytes;  ///< of a block
  uint32_t outputs;       ///< rows of the weight per block of a matrix product
  uint32_t registers;     ///< of a thread; 0 for PTX
  const unsigned char* image;
};

/// The best kernel of that name for a device: machine code, else PTX that the driver compiles.
/// @throws CudaError there is none, naming both.
const CatalogueEntry& choose_entry(std::string_view name, int capability);

}  // namespace moe_export::cuda
