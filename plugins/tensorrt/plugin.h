#pragma once
#include <NvInferRuntime.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "errors.h"
#include "fields.h"
#include "gpu_ops/op.h"
#include "tensors.h"

namespace moe_export::trt {

inline constexpr char kPluginVersion[] = "1";
inline constexpr char kPluginNamespace[] = "";  ///< the only one that nodes of any domain reach
inline constexpr char kElementField[] = "element_type";

/// A tactic is the rows of a tile. TensorRT's own 0 and this one, which stands first for builders
/// that cannot time, leave the tile to the sizes of each call.
inline constexpr int32_t kTileByCall = 1;

/// One node of op `Op` (gpu_ops/op.h) with `set_shapes(attributes, inputs, outputs, builder)`, in
/// all three of TensorRT's capabilities.
template <class Op>
class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
 public:
  using Attributes = typename Op::Attributes;
  using Dynamic = nvinfer1::DynamicPluginTensorDesc;
  using Static = nvinfer1::PluginTensorDesc;

  Plugin(const Attributes& attributes, std::string node, std::optional<ElementType> element)
      : attributes_(attributes),
        node_(std::move(node)),
        num_inputs_(input_names(attributes).size()),
        element_(element) {
    describe();
  }

  // Core
  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override { return copy().release(); }
  const char* getPluginName() const noexcept override { return Attributes::kOpType; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

  // Build
  int32_t getNbOutputs() const noexcept override { return std::size(Op::kOutputs); }
  int32_t getOutputDataTypes(DataType* outputs, int32_t num_outputs, const DataType* inputs,
                             int32_t num_inputs) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t num_inputs,
                          const nvinfer1::DimsExprs*, int32_t, nvinfer1::DimsExprs* outputs,
                          int32_t num_outputs, nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, const Dynamic* tensors, int32_t num_inputs,
                                 int32_t num_outputs) noexcept override;
  int32_t configurePlugin(const Dynamic* inputs, int32_t num_inputs, const Dynamic*,
                          int32_t) noexcept override;
  size_t getWorkspaceSize(const Dynamic* inputs, int32_t num_inputs, const Dynamic*,
                          int32_t) const noexcept override;
  int32_t getNbTactics() noexcept override { return static_cast<int32_t>(tactics_.size()); }
  int32_t getValidTactics(int32_t* tactics, int32_t num_tactics) noexcept override;
  const char* getTimingCacheID() noexcept override { return description_.c_str(); }
  const char* getMetadataString() noexcept override { return description_.c_str(); }

  // Runtime
  int32_t setTactic(int32_t tactic) noexcept override;
  int32_t onShapeChange(const Static* inputs, int32_t num_inputs, const Static*,
                        int32_t) noexcept override;
  int32_t enqueue(const Static* inputs_as, const Static*, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override;
  const PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  std::unique_ptr<Plugin> copy() const noexcept;
  void describe();
  void prepare(ElementType element);

  Attributes attributes_;
  std::string node_;
  size_t num_inputs_;
  std::optional<ElementType> element_;  ///< known once configured, and then serialized
  int32_t tile_rows_ = 0;               ///< 0: by the sizes of each call
  std::vector<int32_t> tactics_;
  std::optional<ElementType> prepared_;  ///< on the device of this object's context
  std::string description_;
  FieldList fields_;
};

}  // namespace moe_export::trt

#include "plugin.inl"
