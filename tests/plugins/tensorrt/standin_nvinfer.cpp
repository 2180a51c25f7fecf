// In place of TensorRT's library: a registry that remembers who registers with it.
#include <NvInferRuntime.h>

#include <cstdlib>
#include <string>

namespace {

using namespace nvinfer1;

class Registry final : public IPluginRegistry {
 public:
  bool registerCreator(IPluginCreatorInterface& creator, const char* space) noexcept override {
    auto& plugin = static_cast<IPluginCreatorV3One&>(creator);
    names_ += std::string(space) + "::" + plugin.getPluginName() + " ";
    return true;
  }
  const std::string& names() const { return names_; }

  bool registerCreator(IPluginCreator&, const char*) noexcept override { return false; }
  IPluginCreator* const* getPluginCreatorList(int32_t*) const noexcept override { return nullptr; }
  IPluginCreator* getPluginCreator(const char*, const char*, const char*) noexcept override {
    return nullptr;
  }
  void setErrorRecorder(IErrorRecorder*) noexcept override {}
  IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
  bool deregisterCreator(const IPluginCreator&) noexcept override { return false; }
  bool isParentSearchEnabled() const override { return false; }
  void setParentSearchEnabled(bool) override {}
  PluginLibraryHandle loadLibrary(const char*) noexcept override { return nullptr; }
  void deregisterLibrary(PluginLibraryHandle) noexcept override {}
  IPluginCreatorInterface* const* getAllCreators(int32_t*) const noexcept override {
    return nullptr;
  }
  IPluginCreatorInterface* getCreator(const char*, const char*, const char*) noexcept override {
    return nullptr;
  }
  bool deregisterCreator(const IPluginCreatorInterface&) noexcept override { return false; }
  IPluginResource* acquirePluginResource(const char*, IPluginResource*) noexcept override {
    return nullptr;
  }
  int32_t releasePluginResource(const char*) noexcept override { return 0; }
  IPluginCreatorInterface* const* getAllCreatorsRecursive(int32_t*) noexcept override {
    return nullptr;
  }

 private:
  std::string names_;
};

Registry& registry() {
  static Registry one;
  return one;
}

}  // namespace

#define MOE_EXPORT_STANDIN extern "C" __attribute__((visibility("default")))

MOE_EXPORT_STANDIN nvinfer1::IPluginRegistry* getPluginRegistry() noexcept { return &registry(); }

/// Of the headers, or MOE_EXPORT_TEST_TENSORRT_VERSION.
MOE_EXPORT_STANDIN int32_t getInferLibVersion() noexcept {
  const char* const told = std::getenv("MOE_EXPORT_TEST_TENSORRT_VERSION");
  return told ? std::atoi(told) : NV_TENSORRT_MAJOR * 10000 + NV_TENSORRT_MINOR * 100 + 7;
}

/// Namespace and name of each, in order.
MOE_EXPORT_STANDIN const char* registered_names() { return registry().names().c_str(); }
