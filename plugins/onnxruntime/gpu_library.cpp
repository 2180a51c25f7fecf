#include "gpu_library.h"

#include <dlfcn.h>
#include <unistd.h>

#include <stdexcept>
#include <string>

namespace moe_export::ort {
namespace {

constexpr char kFileName[] = "libmoe_export_cuda.so";

/// The folder of the library that this code is in.
std::string own_folder() {
  Dl_info info = {};
  if (dladdr(reinterpret_cast<const void*>(&own_folder), &info) == 0) return "";
  const std::string path = info.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

const gpu::GpuLibrary* open_gpu_library() {
  const std::string path = own_folder() + "/" + kFileName;
  if (access(path.c_str(), F_OK) != 0) return nullptr;
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw std::runtime_error(std::string("moe_export: ") + dlerror());
  const auto function =
      reinterpret_cast<gpu::GpuLibraryFunction>(dlsym(library, gpu::kGpuLibraryFunction));
  const std::string version = function == nullptr ? "unknown" : function()->version;
  if (version != MOE_EXPORT_VERSION) {
    throw std::runtime_error("moe_export: " + path + " has version " + version +
                             ", not this library's " MOE_EXPORT_VERSION
                             ": install moe-export again");
  }
  return function();
}

}  // namespace

const gpu::GpuLibrary* find_gpu_library() {
  static const gpu::GpuLibrary* const library = open_gpu_library();
  return library;
}

const gpu::GpuOp& gpu_op(const char* op_type) {
  const gpu::GpuLibrary* const library = find_gpu_library();
  for (size_t i = 0; library != nullptr && i < library->num_ops; ++i) {
    if (std::string(library->ops[i].op_type) == op_type) return library->ops[i];
  }
  throw std::runtime_error(std::string("moe_export: no ") + op_type + " for GPUs");
}

}  // namespace moe_export::ort
