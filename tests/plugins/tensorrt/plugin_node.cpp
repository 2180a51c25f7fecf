#include "plugin_node.h"

#include <algorithm>

namespace moe_export::test {
namespace {

constexpr int64_t kPoison = 0x5A;

/// Output types and shapes, as the builder asks for them.
std::vector<Tensor> make_outputs(const PluginNode& node, const std::vector<Tensor>& inputs) {
  auto& build = node.build();
  const int32_t num_inputs = static_cast<int32_t>(inputs.size());
  const int32_t num_outputs = build.getNbOutputs();
  std::vector<DataType> input_types, types(num_outputs);
  std::vector<nvinfer1::DimsExprs> input_shapes, shapes(num_outputs);
  ExpressionBuilder builder;
  for (const Tensor& input : inputs) {
    input_types.push_back(input.type);
    auto& shape = input_shapes.emplace_back();
    shape.nbDims = 0;
    for (const int64_t size : input.shape) shape.d[shape.nbDims++] = builder.constant(size);
  }
  expect(build.getOutputDataTypes(types.data(), num_outputs, input_types.data(), num_inputs) == 0,
         moe_export_last_error());
  expect(build.getOutputShapes(input_shapes.data(), num_inputs, nullptr, 0, shapes.data(),
                               num_outputs, builder) == 0,
         moe_export_last_error());
  std::vector<Tensor> outputs;
  for (int32_t i = 0; i < num_outputs; ++i) {
    std::vector<int64_t> shape;
    for (int32_t axis = 0; axis < shapes[i].nbDims; ++axis) {
      const std::string text = ExpressionBuilder::text(*shapes[i].d[axis]);
      const size_t factor = text.find('*');  // T*K is the only product
      const int64_t first = std::stoll(text);
      shape.push_back(factor == std::string::npos ? first
                                                  : first * std::stoll(text.substr(factor + 1)));
    }
    const int64_t bytes =
        count_of(shape) * (types[i] == DataType::kFLOAT || types[i] == DataType::kINT32 ? 4 : 2);
    outputs.push_back({types[i], shape, std::vector<char>(bytes, kPoison)});
  }
  return outputs;
}

void expect_formats_supported(const PluginNode& node,
                              const std::vector<nvinfer1::DynamicPluginTensorDesc>& tensors,
                              int32_t num_inputs) {
  const auto num_outputs = static_cast<int32_t>(tensors.size()) - num_inputs;
  for (int32_t i = 0; i < static_cast<int32_t>(tensors.size()); ++i) {
    expect(node.build().supportsFormatCombination(i, tensors.data(), num_inputs, num_outputs),
           "tensor " + std::to_string(i) + " is not supported");
  }
}

}  // namespace

std::vector<Tensor> run(const PluginNode& built, const std::vector<Tensor>& inputs,
                        int32_t tactic) {
  const auto num_inputs = static_cast<int32_t>(inputs.size());
  std::vector<Tensor> outputs = make_outputs(built, inputs);
  const auto num_outputs = static_cast<int32_t>(outputs.size());
  std::vector<nvinfer1::DynamicPluginTensorDesc> dynamic;
  std::vector<nvinfer1::PluginTensorDesc> described;
  std::vector<const void*> from;
  std::vector<void*> to;
  for (const Tensor& tensor : inputs) {
    dynamic.push_back(tensor.dynamic()), described.push_back(tensor.description());
    from.push_back(tensor.bytes.data());
  }
  for (Tensor& tensor : outputs) {
    dynamic.push_back(tensor.dynamic()), described.push_back(tensor.description());
    to.push_back(tensor.bytes.data());
  }
  auto& build = built.build();
  expect_formats_supported(built, dynamic, num_inputs);
  const auto* const outputs_as = dynamic.data() + num_inputs;
  expect(build.configurePlugin(dynamic.data(), num_inputs, outputs_as, num_outputs) == 0,
         moe_export_last_error());
  const size_t bytes = build.getWorkspaceSize(dynamic.data(), num_inputs, outputs_as, num_outputs);

  const PluginNode read = serialized_and_read(built);
  expect(read.runtime().setTactic(tactic) == 0, moe_export_last_error());
  const PluginNode attached(read.runtime().attachToContext(nullptr));
  auto& runtime = attached.runtime();
  expect(runtime.onShapeChange(described.data(), num_inputs, described.data() + num_inputs,
                               num_outputs) == 0,
         moe_export_last_error());
  // Off by one: alignment is the plugin's to see to. Nothing beyond its bytes may change.
  constexpr size_t kBeyond = 1 << 16;
  std::vector<char> workspace(1 + bytes + kBeyond, kPoison);
  expect(runtime.enqueue(described.data(), described.data() + num_inputs, from.data(), to.data(),
                         bytes == 0 ? nullptr : workspace.data() + 1, nullptr) == 0,
         moe_export_last_error());
  const auto beyond = workspace.end() - kBeyond;
  expect(std::count(beyond, workspace.end(), kPoison) == kBeyond, "too little workspace");
  return outputs;
}

}  // namespace moe_export::test
