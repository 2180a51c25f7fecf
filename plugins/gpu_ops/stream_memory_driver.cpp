// Memory of a pool of our own, by the driver: the device's own pool gives memory back to the system
// whenever a stream is waited for.
#include <cuda.h>
#include <dlfcn.h>

#include <limits>
#include <map>
#include <mutex>
#include <string>

#include "stream_memory.h"

namespace moe_export::gpu {
namespace {

using cuda::CudaError;

struct Driver {
  decltype(&cuCtxGetDevice) get_device;
  decltype(&cuMemPoolCreate) create_pool;
  decltype(&cuMemPoolSetAttribute) set_attribute;
  decltype(&cuMemAllocFromPoolAsync) allocate;
  decltype(&cuMemFreeAsync) free;

  Driver() {
    void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) throw CudaError(std::string("no NVIDIA driver: ") + dlerror());
    find(library, "cuCtxGetDevice", get_device);
    find(library, "cuMemPoolCreate", create_pool);
    find(library, "cuMemPoolSetAttribute", set_attribute);
    find(library, "cuMemAllocFromPoolAsync", allocate);
    find(library, "cuMemFreeAsync", free);
  }

 private:
  template <class Function>
  static void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (!function) throw CudaError(std::string("the NVIDIA driver is too old: it has no ") + name);
  }
};

const Driver& driver() {
  static const Driver found;
  return found;
}

void check(CUresult result, const std::string& what) {
  if (result != CUDA_SUCCESS) throw CudaError(what + ": error " + std::to_string(result));
}

/// One for each device, kept as long as the process runs.
CUmemoryPool pool_of_current_device() {
  static std::mutex mutex;
  static std::map<CUdevice, CUmemoryPool> pools;
  CUdevice device;
  check(driver().get_device(&device), "no CUDA context is current");
  const std::lock_guard lock(mutex);
  const auto found = pools.find(device);
  if (found != pools.end()) return found->second;
  CUmemPoolProps properties = {};
  properties.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location = {CU_MEM_LOCATION_TYPE_DEVICE, device};
  CUmemoryPool pool;
  check(driver().create_pool(&pool, &properties), "cannot make a memory pool");
  cuuint64_t all = std::numeric_limits<cuuint64_t>::max();
  check(driver().set_attribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &all),
        "cannot keep a pool's memory");
  return pools.emplace(device, pool).first->second;
}

}  // namespace

StreamMemory::StreamMemory(size_t bytes, cuda::Stream stream) : stream_(stream) {
  if (bytes == 0) return;
  CUdeviceptr address = 0;
  check(driver().allocate(&address, bytes, pool_of_current_device(), static_cast<CUstream>(stream)),
        "cannot allocate " + std::to_string(bytes) + " bytes of scratch");
  data_ = reinterpret_cast<void*>(address);
}

StreamMemory::~StreamMemory() {
  if (data_ != nullptr) {
    driver().free(reinterpret_cast<CUdeviceptr>(data_), static_cast<CUstream>(stream_));
  }
}

}  // namespace moe_export::gpu
