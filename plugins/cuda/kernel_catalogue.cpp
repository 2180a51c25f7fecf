#include "kernel_catalogue.h"

#include <string>

namespace moe_export::cuda {
namespace {

#include "catalogue.inc"

/// Machine code runs on its own capability; that of 8.0 on every 8.x.
bool serves(int target, int capability) {
  return target == capability || (target == 80 && capability / 10 == 8);
}

std::string version(int capability) {
  return std::to_string(capability / 10) + "." + std::to_string(capability % 10);
}

}  // namespace

const CatalogueEntry& choose_entry(std::string_view name, int capability) {
  if (capability < kLeastCapability) {
    throw CudaError("the kernels need compute capability " + version(kLeastCapability) +
                    " or later; this GPU has " + version(capability));
  }
  const CatalogueEntry* portable = nullptr;
  for (const CatalogueEntry& entry : kCatalogue) {
    if (entry.name != name) continue;
    if (serves(entry.target, capability)) return entry;
    if (entry.target == 0) portable = &entry;
  }
  if (portable) return *portable;
  throw CudaError("there is no kernel " + std::string(name));
}

}  // namespace moe_export::cuda
