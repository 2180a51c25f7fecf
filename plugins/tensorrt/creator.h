#pragma once
#include <NvInferRuntime.h>

#include "plugin.h"
#include "spec/attribute_checks.h"

namespace moe_export::trt {

/// Makes plugins of op `Op`, from a node's attributes or from what an engine has serialized.
template <class Op>
class Creator final : public nvinfer1::IPluginCreatorV3One {
 public:
  using Attributes = typename Op::Attributes;

  Creator() { Attributes().visit(FieldWriter(fields_)); }

  const char* getPluginName() const noexcept override { return Attributes::kOpType; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }
  const PluginFieldCollection* getFieldNames() noexcept override { return fields_.collection(); }

  /// Null, with the reason reported, if an attribute is wrong.
  nvinfer1::IPluginV3* createPlugin(const char* name, const PluginFieldCollection* fields,
                                    nvinfer1::TensorRTPhase) noexcept override {
    nvinfer1::IPluginV3* plugin = nullptr;
    const std::string label = std::string(label_prefix(Attributes())) + "_attributes";
    guard(name == nullptr ? "" : name, [&] {
      const PluginFieldCollection none;
      const FieldReader reader(fields == nullptr ? none : *fields, label);
      Attributes attributes;
      attributes.visit(reader);
      check_attributes(attributes);
      Op::check_computed(attributes);
      const std::string element = reader.find_string(kElementField);
      plugin = new Plugin<Op>(attributes, name == nullptr ? "" : name, gpu::element_named(element));
    });
    return plugin;
  }

 private:
  FieldList fields_;
};

}  // namespace moe_export::trt
