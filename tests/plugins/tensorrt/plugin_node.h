#pragma once
#include <NvInferRuntime.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "expressions.h"
#include "tensorrt/fields.h"

extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count);
extern "C" const char* moe_export_last_error();

namespace moe_export::test {

using nvinfer1::DataType;
using trt::FieldList;

/// A tensor on the host: its allocation ends where it does, so that a sanitizer sees beyond.
struct Tensor {
  DataType type;
  std::vector<int64_t> shape;
  std::vector<char> bytes;

  nvinfer1::Dims dims() const {
    nvinfer1::Dims dims = {static_cast<int32_t>(shape.size()), {}};
    std::copy(shape.begin(), shape.end(), dims.d);
    return dims;
  }
  nvinfer1::PluginTensorDesc description() const {
    return {dims(), type, nvinfer1::TensorFormat::kLINEAR, 1.0f};
  }
  nvinfer1::DynamicPluginTensorDesc dynamic() const {
    return {description(), dims(), dims(), dims()};
  }
  template <class T>
  std::vector<T> values() const {
    std::vector<T> values(bytes.size() / sizeof(T));
    if (!bytes.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }
};

inline int64_t count_of(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

template <class T>
Tensor make_tensor(DataType type, std::vector<int64_t> shape, const std::vector<T>& values) {
  Tensor tensor = {type, std::move(shape), std::vector<char>(values.size() * sizeof(T))};
  if (!values.empty()) std::memcpy(tensor.bytes.data(), values.data(), tensor.bytes.size());
  return tensor;
}

inline nvinfer1::IPluginCreatorV3One& creator_of(const std::string& op_type) {
  int32_t count = 0;
  auto* const* const creators = getCreators(count);
  for (int32_t i = 0; i < count; ++i) {
    auto* const creator = static_cast<nvinfer1::IPluginCreatorV3One*>(creators[i]);
    if (op_type == creator->getPluginName()) return *creator;
  }
  throw std::runtime_error("no creator of " + op_type);
}

using PluginPointer = std::unique_ptr<nvinfer1::IPluginV3>;

/// A plugin with its capabilities; it owns the plugin.
class PluginNode {
 public:
  explicit PluginNode(nvinfer1::IPluginV3* plugin) : plugin_(plugin) {
    expect(plugin != nullptr, moe_export_last_error());
  }

  nvinfer1::IPluginV3& plugin() const { return *plugin_; }
  nvinfer1::IPluginV3OneCore& core() const {
    return capability<nvinfer1::IPluginV3OneCore>(nvinfer1::PluginCapabilityType::kCORE);
  }
  nvinfer1::IPluginV3OneBuild& build() const {
    return capability<nvinfer1::IPluginV3OneBuild>(nvinfer1::PluginCapabilityType::kBUILD);
  }
  nvinfer1::IPluginV3OneRuntime& runtime() const {
    return capability<nvinfer1::IPluginV3OneRuntime>(nvinfer1::PluginCapabilityType::kRUNTIME);
  }

 private:
  template <class Capability>
  Capability& capability(nvinfer1::PluginCapabilityType type) const {
    auto* const found = plugin_->getCapabilityInterface(type);
    expect(found != nullptr, "no capability");
    return *static_cast<Capability*>(found);
  }

  PluginPointer plugin_;
};

/// A plugin of a node as the parser makes it, or null.
inline PluginPointer create(const std::string& op_type,
                            const nvinfer1::PluginFieldCollection& fields,
                            nvinfer1::TensorRTPhase phase = nvinfer1::TensorRTPhase::kBUILD) {
  return PluginPointer(creator_of(op_type).createPlugin("layers.3/node", &fields, phase));
}

template <class Attributes>
PluginNode create(Attributes attributes) {
  FieldList fields;
  attributes.visit(trt::FieldWriter(fields));
  return PluginNode(create(Attributes::kOpType, *fields.collection()).release());
}

/// What an engine has of the plugin, and another process makes of that.
inline PluginNode serialized_and_read(const PluginNode& node) {
  const auto* const fields = node.runtime().getFieldsToSerialize();
  expect(fields != nullptr, "no fields");
  return PluginNode(
      create(node.core().getPluginName(), *fields, nvinfer1::TensorRTPhase::kRUNTIME).release());
}

/// Fails unless `status` is not 0 and the reason that was reported has `reason` in it.
inline void expect_refused(int32_t status, const std::string& reason) {
  const std::string found = moe_export_last_error();
  expect(status != 0, "not refused");
  expect(found.find(reason) != std::string::npos, "refused for '" + found + "', not " + reason);
}

/// The outputs of what TensorRT does with a node: it is built, serialized, read, attached and run.
std::vector<Tensor> run(const PluginNode& built, const std::vector<Tensor>& inputs,
                        int32_t tactic = 0);

}  // namespace moe_export::test
