// Launches on a GPU through its driver.
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "driver_library.h"
#include "kernel_catalogue.h"
#include "launch.h"

namespace moe_export::cuda {
namespace {

struct Driver : DriverLibrary {
  decltype(&cuCtxGetDevice) get_device;
  decltype(&cuDeviceGetAttribute) get_device_attribute;
  decltype(&cuLibraryLoadData) load_library;
  decltype(&cuLibraryGetKernel) get_kernel;
  decltype(&cuKernelSetAttribute) set_kernel_attribute;
  decltype(&cuLaunchKernel) launch_kernel;

  Driver() {
    find("cuCtxGetDevice", get_device);
    find("cuDeviceGetAttribute", get_device_attribute);
    find("cuLibraryLoadData", load_library);
    find("cuLibraryGetKernel", get_kernel);
    find("cuKernelSetAttribute", set_kernel_attribute);
    find("cuLaunchKernel", launch_kernel);
  }
};

const Driver& driver() {
  static const Driver found;
  return found;
}

CUdevice current_device() {
  CUdevice device;
  driver().check(driver().get_device(&device), "no CUDA context is current");
  return device;
}

int capability_of(CUdevice device) {
  int major = 0, minor = 0;
  const auto read = [&](int& value, CUdevice_attribute attribute) {
    driver().check(driver().get_device_attribute(&value, attribute, device),
                   "cannot read the compute capability");
  };
  read(major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
  read(minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
  return 10 * major + minor;
}

Kernel load(std::string_view name, CUdevice device) {
  const CatalogueEntry& entry = choose_entry(name, capability_of(device));
  const std::string what = "cannot load kernel " + std::string(name);
  CUlibrary library;
  CUkernel kernel;
  driver().check(
      driver().load_library(&library, entry.image, nullptr, nullptr, 0, nullptr, nullptr, 0), what);
  driver().check(driver().get_kernel(&kernel, library, entry.entry), what);
  constexpr uint32_t kWithoutAsking = 48 << 10;
  if (entry.shared_bytes > kWithoutAsking) {
    driver().check(
        driver().set_kernel_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                      static_cast<int>(entry.shared_bytes), kernel, device),
        what);
  }
  return {std::string(name), entry.threads, entry.shared_bytes, entry.outputs, kernel};
}

}  // namespace

int device_capability() { return capability_of(current_device()); }

const Kernel& find_kernel(std::string_view name) {
  // Kernels stay loaded as long as the process runs.
  static std::mutex mutex;
  static std::map<std::pair<CUdevice, std::string>, Kernel, std::less<>> kernels;
  const std::pair<CUdevice, std::string> key(current_device(), name);
  const std::lock_guard lock(mutex);
  const auto found = kernels.find(key);
  if (found != kernels.end()) return found->second;
  return kernels.emplace(key, load(name, key.first)).first->second;
}

void launch(const Kernel& kernel, Grid grid, uint32_t threads, uint32_t shared_bytes,
            void* const* arguments, Stream stream) {
  driver().check(driver().launch_kernel(static_cast<CUfunction>(kernel.function), grid.x, grid.y, 1,
                                        threads, 1, 1, shared_bytes, static_cast<CUstream>(stream),
                                        const_cast<void**>(arguments), nullptr),
                 "cannot launch kernel " + kernel.name);
}

}  // namespace moe_export::cuda
