// The tests' end of the launch seam: a kernel is its PTX, translated to C++ and compiled
// (tests/ptx), and device memory is the host's.
#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "kernel_catalogue.h"
#include "launch.h"

namespace moe_export::cuda {
namespace {

using Run = int (*)(const unsigned grid[3], unsigned threads, unsigned shared_bytes, unsigned seed,
                    void* const* arguments);

int setting(const char* name, int otherwise) {
  const char* const text = std::getenv(name);
  return text ? std::atoi(text) : otherwise;
}

Run load(std::string_view name, int capability) {
  const CatalogueEntry& entry = choose_entry(name, capability);
  const char* const folder = std::getenv("MOE_EXPORT_PTX_KERNELS");
  if (!folder) throw CudaError("MOE_EXPORT_PTX_KERNELS is not set");
  // Kernels of CUDA C++ come from one file for all targets.
  const std::string file =
      std::string(folder) + "/" +
      (entry.outputs == 0 ? "kernels" : std::string(name) + "_sm" + std::to_string(entry.target)) +
      ".so";
  void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) throw CudaError(dlerror());
  const std::string symbol = std::string("ptx_run_") + entry.entry;
  const auto run = reinterpret_cast<Run>(dlsym(library, symbol.c_str()));
  if (!run) throw CudaError(file + " has no " + symbol);
  return run;
}

}  // namespace

int device_capability() { return setting("MOE_EXPORT_TEST_CAPABILITY", 80); }

const Kernel& find_kernel(std::string_view name) {
  static std::mutex mutex;
  static std::map<std::pair<int, std::string>, Kernel> kernels;
  const std::pair<int, std::string> key(device_capability(), name);
  const std::lock_guard lock(mutex);
  const auto found = kernels.find(key);
  if (found != kernels.end()) return found->second;
  const CatalogueEntry& entry = choose_entry(name, key.first);
  const Kernel kernel = {key.second, entry.threads, entry.shared_bytes, entry.outputs, nullptr};
  return kernels.emplace(key, kernel).first->second;
}

void launch(const Kernel& kernel, Grid grid, uint32_t threads, uint32_t shared_bytes,
            void* const* arguments, Stream) {
  // Compiled when they are needed: preparing asks for every tile's kernel.
  static std::map<const Kernel*, Run> runs;
  Run& run = runs[&kernel];
  if (!run) run = load(kernel.name, device_capability());
  const unsigned extents[3] = {grid.x, grid.y, 1};
  const auto seed = static_cast<unsigned>(setting("MOE_EXPORT_TEST_SEED", 0));
  const int status = run(extents, threads, shared_bytes, seed, arguments);
  if (status != 0) throw CudaError("kernel " + kernel.name + " failed");
}

}  // namespace moe_export::cuda
