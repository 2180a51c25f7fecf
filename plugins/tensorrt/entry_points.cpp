// What TensorRT asks a plugin library for. The layouts of its registry and loggers have changed
// between versions: one library for all of them calls neither.
#include <NvInferRuntime.h>

#include <cstdio>

#include "creators.h"

#define MOE_EXPORT_API extern "C" __attribute__((visibility("default")))

/// The creators of all plugins; for IPluginRegistry::loadLibrary.
MOE_EXPORT_API nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  using namespace moe_export::trt;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {
      &top_k_gating_creator(), &grouped_experts_creator(), &expert_dispatch_creator(),
      &grouped_matmul_creator(), &expert_combine_creator()};
  count = static_cast<int32_t>(sizeof(creators) / sizeof(creators[0]));
  return creators;
}

/// TensorRT offers its logger; reasons go to stderr and `moe_export_last_error`.
MOE_EXPORT_API void setLoggerFinder(nvinfer1::ILoggerFinder*) {}

/// The package's version, zero-terminated.
MOE_EXPORT_API const char* moe_export_trt_version() { return MOE_EXPORT_VERSION; }

#ifdef MOE_EXPORT_TRT_STATIC_REGISTRATION
// Triton Inference Server only loads the library, and never asks for its creators. This needs the
// TensorRT that the library was built for: in another one's registry the call lands elsewhere.
namespace {

constexpr int32_t kBuiltFor = NV_TENSORRT_MAJOR * 100 + NV_TENSORRT_MINOR;

const bool registered = [] {
  const int32_t found = getInferLibVersion() / 100;
  if (found != kBuiltFor) {
    std::fprintf(stderr,
                 "moe-export: plugins for TensorRT %d.%d are not registered with TensorRT %d.%d: "
                 "build them with its headers\n",
                 kBuiltFor / 100, kBuiltFor % 100, found / 100, found % 100);
    return false;
  }
  int32_t count = 0;
  auto* const* const creators = getCreators(count);
  bool all = true;
  for (int32_t i = 0; i < count; ++i) {
    all = getPluginRegistry()->registerCreator(*creators[i], "") && all;
  }
  if (!all) std::fprintf(stderr, "moe-export: TensorRT has plugins of the same names already\n");
  return all;
}();

}  // namespace
#endif
