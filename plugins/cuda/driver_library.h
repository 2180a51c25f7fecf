// The NVIDIA driver, libcuda.so.1, opened when it is needed: libraries load on machines without
// one, and depend on no CUDA toolkit's version.
#pragma once
#include <cuda.h>
#include <dlfcn.h>

#include <string>

#include "launch.h"

namespace moe_export::cuda {

class DriverLibrary {
 public:
  /// @throws CudaError there is no driver.
  DriverLibrary() : library_(dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL)) {
    if (!library_) throw CudaError(std::string("no NVIDIA driver: ") + dlerror());
    find("cuGetErrorString", get_error_string_);
  }

  /// @throws CudaError the driver is too old.
  template <class Function>
  void find(const char* name, Function& function) const {
    function = reinterpret_cast<Function>(dlsym(library_, name));
    if (!function) throw CudaError(std::string("the NVIDIA driver is too old: it has no ") + name);
  }

  /// @throws CudaError `what` went wrong, with the driver's reason.
  void check(CUresult result, const std::string& what) const {
    if (result == CUDA_SUCCESS) return;
    const char* text = nullptr;
    get_error_string_(result, &text);
    throw CudaError(what + ": " + (text ? text : "unknown error") + " (" + std::to_string(result) +
                    ")");
  }

 private:
  void* library_;
  decltype(&cuGetErrorString) get_error_string_;
};

}  // namespace moe_export::cuda
