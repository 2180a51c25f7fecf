// Memory of a pool of our own, by the driver: the device's own pool gives memory back to the system
// whenever a stream is waited for.
#include <limits>
#include <map>
#include <mutex>
#include <string>

#include "cuda/driver_library.h"
#include "stream_memory.h"

namespace moe_export::gpu {
namespace {

struct Driver : cuda::DriverLibrary {
  decltype(&cuCtxGetDevice) get_device;
  decltype(&cuMemPoolCreate) create_pool;
  decltype(&cuMemPoolSetAttribute) set_attribute;
  decltype(&cuMemAllocFromPoolAsync) allocate;
  decltype(&cuMemFreeAsync) free;

  Driver() {
    find("cuCtxGetDevice", get_device);
    find("cuMemPoolCreate", create_pool);
    find("cuMemPoolSetAttribute", set_attribute);
    find("cuMemAllocFromPoolAsync", allocate);
    find("cuMemFreeAsync", free);
  }
};

const Driver& driver() {
  static const Driver found;
  return found;
}

/// One for each device, kept as long as the process runs.
CUmemoryPool pool_of_current_device() {
  static std::mutex mutex;
  static std::map<CUdevice, CUmemoryPool> pools;
  CUdevice device;
  driver().check(driver().get_device(&device), "no CUDA context is current");
  const std::lock_guard lock(mutex);
  const auto found = pools.find(device);
  if (found != pools.end()) return found->second;
  CUmemPoolProps properties = {};
  properties.allocType = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties.location = {CU_MEM_LOCATION_TYPE_DEVICE, device};
  CUmemoryPool pool;
  driver().check(driver().create_pool(&pool, &properties), "cannot make a memory pool");
  cuuint64_t all = std::numeric_limits<cuuint64_t>::max();
  driver().check(driver().set_attribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &all),
                 "cannot keep a pool's memory");
  return pools.emplace(device, pool).first->second;
}

}  // namespace

StreamMemory::StreamMemory(size_t bytes, cuda::Stream stream) : stream_(stream) {
  if (bytes == 0) return;
  CUdeviceptr address = 0;
  driver().check(
      driver().allocate(&address, bytes, pool_of_current_device(), static_cast<CUstream>(stream)),
      "cannot allocate " + std::to_string(bytes) + " bytes of scratch");
  data_ = reinterpret_cast<void*>(address);
}

StreamMemory::~StreamMemory() {
  if (data_ != nullptr) {
    driver().free(reinterpret_cast<CUdeviceptr>(data_), static_cast<CUstream>(stream_));
  }
}

}  // namespace moe_export::gpu
