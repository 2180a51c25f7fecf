// Methods of `Plugin`. None throws: each runs in a guard that reports.
namespace moe_export::trt {

template <class Op>
nvinfer1::IPluginCapability* Plugin<Op>::getCapabilityInterface(
    nvinfer1::PluginCapabilityType type) noexcept {
  switch (type) {
    case nvinfer1::PluginCapabilityType::kCORE:
      return static_cast<nvinfer1::IPluginV3OneCore*>(this);
    case nvinfer1::PluginCapabilityType::kBUILD:
      return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
    case nvinfer1::PluginCapabilityType::kRUNTIME:
      return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

template <class Op>
std::unique_ptr<Plugin<Op>> Plugin<Op>::copy() const noexcept {
  std::unique_ptr<Plugin> other;
  guard(node_, [&] {
    other = std::make_unique<Plugin>(attributes_, node_, element_);
    other->tile_rows_ = tile_rows_;
    other->tactics_ = tactics_;
  });
  return other;
}

/// "GroupedExperts num_experts=8 ... library=0.1.0": what timings depend on beside the tensors.
template <class Op>
void Plugin<Op>::describe() {
  description_ = Attributes::kOpType;
  Attributes attributes = attributes_;
  attributes.visit([&](const char* name, auto value) {
    description_.append(" ").append(name).append("=");
    if constexpr (std::is_enum_v<decltype(value)>) {
      description_ += EnumNames<decltype(value)>::kValues[static_cast<size_t>(value)];
    } else {
      description_ += std::to_string(value);
    }
  });
  description_ += " library=" MOE_EXPORT_VERSION;
}

template <class Op>
int32_t Plugin<Op>::getOutputDataTypes(DataType* outputs, int32_t num_outputs,
                                       const DataType* inputs, int32_t num_inputs) const noexcept {
  return guard(node_, [&] {
    std::vector<gpu::TensorType> types;
    for (int32_t i = 0; i < num_inputs; ++i) types.push_back(tensor_type_of(inputs[i]));
    gpu::check_types<Op>(attributes_, types);
    for (int32_t i = 0; i < num_outputs; ++i) {
      outputs[i] = data_type_of(gpu::type_of(Op::kOutputs[i], types[0]));
    }
  });
}

template <class Op>
int32_t Plugin<Op>::getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t num_inputs,
                                    const nvinfer1::DimsExprs*, int32_t,
                                    nvinfer1::DimsExprs* outputs, int32_t,
                                    nvinfer1::IExprBuilder& builder) noexcept {
  return guard(node_, [&] {
    const std::string label = std::string(label_prefix(attributes_)) + "_inputs";
    check_input_count(label, input_names(attributes_), static_cast<size_t>(num_inputs));
    std::vector<Shape> shapes;
    for (int32_t i = 0; i < num_inputs; ++i) shapes.push_back(shape_of(inputs[i]));
    Op::check_shapes(attributes_, shapes, std::nullopt);  // types are not known here
    Op::set_shapes(attributes_, inputs, outputs, builder);
  });
}

/// Asked for types that a node may not have too: nothing is reported.
template <class Op>
bool Plugin<Op>::supportsFormatCombination(int32_t position, const Dynamic* tensors,
                                           int32_t num_inputs, int32_t) noexcept {
  if (tensors[position].desc.format != nvinfer1::TensorFormat::kLINEAR) return false;
  const gpu::TensorType type = tensor_type_of(tensors[position].desc.type);
  if (position >= num_inputs) {
    const gpu::TensorType element = tensor_type_of(tensors[0].desc.type);
    return type == gpu::type_of(Op::kOutputs[position - num_inputs], element);
  }
  try {
    if (!gpu::is_allowed(Op::inputs(attributes_).at(position), type)) return false;
    if (position == 0) Op::check_element(attributes_, *gpu::element_of(type));
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

template <class Op>
int32_t Plugin<Op>::configurePlugin(const Dynamic* inputs, int32_t num_inputs, const Dynamic*,
                                    int32_t) noexcept {
  return guard(node_, [&] {
    std::vector<gpu::TensorType> types;
    std::vector<Shape> shapes, largest;
    for (int32_t i = 0; i < num_inputs; ++i) {
      types.push_back(tensor_type_of(inputs[i].desc.type));
      shapes.push_back(shape_of(inputs[i].desc.dims));
      largest.push_back(shape_of(inputs[i].max));
    }
    gpu::check_types<Op>(attributes_, types);
    element_ = gpu::element_of(types[0]);
    Op::check_shapes(attributes_, shapes, element_);
    Op::check_shapes(attributes_, largest, element_);
    const std::vector<int> tiles = Op::tiles(attributes_, *element_);
    tactics_.clear();
    if (tiles.size() < 2) return;
    tactics_.push_back(kTileByCall);
    tactics_.insert(tactics_.end(), tiles.begin(), tiles.end());
  });
}

template <class Op>
size_t Plugin<Op>::getWorkspaceSize(const Dynamic* inputs, int32_t num_inputs, const Dynamic*,
                                    int32_t) const noexcept {
  size_t bytes = std::numeric_limits<size_t>::max() / 2;  // no room for it: the build fails
  guard(node_, [&] {
    std::vector<Shape> largest;
    for (int32_t i = 0; i < num_inputs; ++i) largest.push_back(shape_of(inputs[i].max));
    const auto element = gpu::element_of(tensor_type_of(inputs[0].desc.type));
    const size_t needed = Op::workspace_bytes(attributes_, element.value(), largest);
    bytes = needed == 0 ? 0 : needed + gpu::kWorkspaceAlignment;
  });
  return bytes;
}

template <class Op>
int32_t Plugin<Op>::getValidTactics(int32_t* tactics, int32_t num_tactics) noexcept {
  const auto count = std::min(static_cast<size_t>(num_tactics), tactics_.size());
  std::copy_n(tactics_.begin(), count, tactics);
  return 0;
}

/// TensorRT keeps the tactic with the engine and sets it again: it is no field.
template <class Op>
int32_t Plugin<Op>::setTactic(int32_t tactic) noexcept {
  return guard(node_, [&] {
    tile_rows_ = tactic == kTileByCall ? 0 : tactic;
    if (tile_rows_ == 0) return;
    bool known = false;
    for (const ElementType element : {ElementType::kFp32, ElementType::kFp16, ElementType::kBf16}) {
      const std::vector<int> tiles = Op::tiles(attributes_, element);
      known |= std::count(tiles.begin(), tiles.end(), tile_rows_) > 0;
    }
    if (known) return;
    tile_rows_ = 0;
    throw std::runtime_error("this library has no tiles of " + std::to_string(tactic) +
                             " rows: the engine was built with another one");
  });
}

/// Loads kernels unless they are: not in `enqueue`, which may be captured into a CUDA graph.
template <class Op>
void Plugin<Op>::prepare(ElementType element) {
  if (prepared_ == element) return;
  Op::prepare(attributes_, element);
  prepared_ = element;
}

template <class Op>
int32_t Plugin<Op>::onShapeChange(const Static* inputs, int32_t num_inputs, const Static*,
                                  int32_t) noexcept {
  return guard(node_, [&] {
    std::vector<gpu::TensorType> types;
    std::vector<Shape> shapes;
    for (int32_t i = 0; i < num_inputs; ++i) {
      types.push_back(tensor_type_of(inputs[i].type));
      shapes.push_back(shape_of(inputs[i].dims));
    }
    gpu::check_types<Op>(attributes_, types);
    const ElementType element = *gpu::element_of(types[0]);
    Op::check_shapes(attributes_, shapes, element);
    prepare(element);
  });
}

template <class Op>
int32_t Plugin<Op>::enqueue(const Static* inputs_as, const Static*, const void* const* inputs,
                            void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
  return guard(node_, [&] {
    gpu::TensorRef tensors[gpu::kMostInputs];
    for (size_t i = 0; i < num_inputs_; ++i) {
      const nvinfer1::Dims& dims = inputs_as[i].dims;
      tensors[i] = {inputs[i], dims.d, dims.nbDims, tensor_type_of(inputs_as[i].type)};
    }
    Op::run(attributes_, gpu::Call(tensors, outputs, workspace, stream), tile_rows_);
  });
}

template <class Op>
nvinfer1::IPluginV3* Plugin<Op>::attachToContext(nvinfer1::IPluginResourceContext*) noexcept {
  std::unique_ptr<Plugin> attached = copy();
  if (attached == nullptr || !attached->element_) return attached.release();
  const bool ready = guard(node_, [&] { attached->prepare(*attached->element_); }) == 0;
  return ready ? attached.release() : nullptr;
}

template <class Op>
const PluginFieldCollection* Plugin<Op>::getFieldsToSerialize() noexcept {
  const PluginFieldCollection* collection = nullptr;
  guard(node_, [&] {
    Attributes attributes = attributes_;
    fields_ = {};
    attributes.visit(FieldWriter(fields_));
    if (element_) fields_.add_string(kElementField, cuda::name_of(*element_));
    collection = fields_.collection();
  });
  return collection;
}

}  // namespace moe_export::trt
