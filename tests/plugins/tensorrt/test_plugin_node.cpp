// How plugins are made, copied, configured and refused.
#include "elements.h"
#include "host_functions.h"
#include "plugin_node.h"

using namespace moe_export;
using namespace moe_export::test;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

namespace {

constexpr const char* kOpTypes[] = {"TopKGating", "GroupedExperts", "ExpertDispatch",
                                    "GroupedMatMul", "ExpertCombine"};

TopKGatingAttributes gating() {
  TopKGatingAttributes a;
  a.top_k = 4;
  a.score_function = ScoreFunction::kSqrtSoftplus;
  a.has_selection_bias = true;
  a.num_groups = 4;
  a.top_groups = 2;
  a.group_score = GroupScore::kTop2Sum;
  a.excluded_score = ExcludedScore::kZero;
  a.weight_function = WeightFunction::kSigmoid;
  a.renormalize = true;
  a.epsilon = 1e-20f;
  a.epsilon_mode = EpsilonMode::kClamp;
  a.scale = 2.5f;
  return a;
}

GroupedExpertsAttributes experts() {
  GroupedExpertsAttributes a;
  a.num_experts = 4;
  a.hidden_size = 32;
  a.intermediate_size = 48;
  a.alpha = 1.702f;
  a.limit = 7.0f;
  a.limit_on = LimitOn::kOutput;
  a.up_offset = 1.0f;
  a.has_bias = true;
  a.weight_on = WeightOn::kInput;
  a.first_expert = int64_t{1} << 40;
  a.weight_type = WeightType::kFp16;
  a.weight_layout = WeightLayout::kCudaV1;
  return a;
}

GroupedMatMulAttributes matmul() {
  return {4, 32, 48, true, WeightType::kBf16, 0, false, WeightLayout::kCudaV1};
}

template <class Attributes>
std::string text_of(Attributes attributes) {
  std::string text;
  attributes.visit([&](const char* name, auto value) {
    text += std::string(name) + "=" + std::to_string(static_cast<double>(value)) + " ";
  });
  return text;
}

template <class Attributes>
Attributes read(const nvinfer1::PluginFieldCollection& fields) {
  Attributes attributes;
  attributes.visit(trt::FieldReader(fields, "read"));
  return attributes;
}

template <class Attributes>
void test_round_trips(const Attributes& attributes) {
  const std::string name = Attributes::kOpType;
  run_case("fields_survive_serialization_" + name, [&] {
    const PluginNode node = serialized_and_read(create(attributes));
    const auto& fields = *node.runtime().getFieldsToSerialize();
    expect(text_of(read<Attributes>(fields)) == text_of(attributes), "other attributes");
  });
  run_case("clones_outlive_their_original_" + name, [&] {
    std::unique_ptr<PluginNode> clone;
    std::string metadata;
    {
      const PluginNode node = create(attributes);
      clone = std::make_unique<PluginNode>(node.plugin().clone());
      metadata = node.build().getMetadataString();
    }
    const auto& fields = *clone->runtime().getFieldsToSerialize();
    expect(text_of(read<Attributes>(fields)) == text_of(attributes), "other attributes");
    expect(clone->build().getMetadataString() == metadata, metadata);
  });
  run_case("creator_has_a_field_per_attribute_" + name, [&] {
    FieldList expected;
    Attributes(attributes).visit(trt::FieldWriter(expected));
    const auto& fields = *creator_of(name).getFieldNames();
    expect(fields.nbFields == expected.collection()->nbFields, "number of fields");
    for (int32_t i = 0; i < fields.nbFields; ++i) {
      expect(std::string(fields.fields[i].name) == expected.collection()->fields[i].name, "name");
    }
  });
  run_case("a_missing_attribute_is_named_" + name, [&] {
    FieldList list;
    Attributes(attributes).visit(trt::FieldWriter(list));
    const auto& all = *list.collection();
    for (int32_t left_out = 0; left_out < all.nbFields; ++left_out) {
      std::vector<PluginField> fields(all.fields, all.fields + all.nbFields);
      fields.erase(fields.begin() + left_out);
      const PluginPointer plugin =
          create(name, {static_cast<int32_t>(fields.size()), fields.data()});
      expect_refused(plugin == nullptr, "_attributes: the node needs attribute " +
                                            std::string(all.fields[left_out].name) + " of type ");
    }
  });
}

void test_wrong_fields() {
  const auto refused = [](const PluginField& field, const std::string& reason) {
    FieldList list;
    experts().visit(trt::FieldWriter(list));
    std::vector<PluginField> fields(list.collection()->fields,
                                    list.collection()->fields + list.collection()->nbFields);
    for (PluginField& other : fields) {
      if (std::strcmp(other.name, field.name) == 0) other = field;
    }
    const PluginPointer plugin =
        create("GroupedExperts", {static_cast<int32_t>(fields.size()), fields.data()});
    expect_refused(plugin == nullptr, "moe_export: " + reason);
    expect_refused(1, "(layers.3/node)");
  };
  const int32_t zero = 0, two = 2;
  const int64_t ones[] = {1, 1};
  const float number = 2.5f, infinity = HUGE_VALF;
  run_case("fields_of_the_wrong_type_or_value_are_refused", [&] {
    refused({"num_experts", &number, PluginFieldType::kFLOAT32, 1},
            "experts_attributes: the node needs attribute num_experts of type int (it has floats");
    refused({"num_experts", ones, PluginFieldType::kINT64, 2}, "experts_attributes: the node");
    refused({"num_experts", &zero, PluginFieldType::kINT32, 1},
            "experts_c6: num_experts must be at least 1; found 0");
    refused({"gated", &two, PluginFieldType::kINT32, 1},
            "experts_attributes: gated must be 0 or 1; found 2");
    refused({"alpha", &two, PluginFieldType::kINT32, 1},
            "experts_attributes: the node needs attribute alpha of type float (it has ints");
    refused({"alpha", &infinity, PluginFieldType::kFLOAT32, 1},
            "experts_attributes: alpha must be a finite float");
    refused({"activation", "swish", PluginFieldType::kCHAR, 6},
            "experts_attributes: activation must be one of silu, gelu, gelu_tanh, relu, relu2, "
            "identity; found 'swish'");
    refused({"activation", &two, PluginFieldType::kINT32, 1},
            "experts_attributes: the node needs attribute activation of type string");
    refused({"activation", "gelu", PluginFieldType::kCHAR, 5}, "experts_c7: alpha belongs to silu");
    refused({"weight_layout", "row_major", PluginFieldType::kCHAR, 10},
            "experts_c4: this library computes weight_layout cuda_v1; found row_major");
    refused({"weight_type", "int8", PluginFieldType::kCHAR, 5},
            "experts_c4: this library does not compute weight_type int8 in layout cuda_v1");
  });
  run_case("strings_may_lack_their_zero", [] {
    FieldList list;
    ExpertCombineAttributes{8}.visit(trt::FieldWriter(list));
    PluginField field("score_function", "sigmoidal", PluginFieldType::kCHAR, 7);
    ScoreFunction value;
    trt::FieldReader({1, &field}, "label")("score_function", value);
    expect(value == ScoreFunction::kSigmoid, "sigmoid");
  });
}

/// Inputs of `experts()` for some tokens.
std::vector<Tensor> inputs_of_experts() {
  const auto a = experts();
  const int64_t up = packed_bytes(cuda::ElementType::kFp16, 96, 32);
  const int64_t down = packed_bytes(cuda::ElementType::kFp16, 32, 48);
  const auto tensor = [](DataType type, std::vector<int64_t> shape) {
    return Tensor{type, std::move(shape), {}};
  };
  return {tensor(DataType::kHALF, {5, 32}),
          tensor(DataType::kINT64, {5, 2}),
          tensor(DataType::kFLOAT, {5, 2}),
          tensor(DataType::kINT8, {4, up}),
          tensor(DataType::kINT8, {4, down}),
          tensor(DataType::kFLOAT, {4, 96}),
          tensor(DataType::kFLOAT, {a.num_experts, 32})};
}

int32_t configure(const PluginNode& node, const std::vector<Tensor>& inputs) {
  std::vector<nvinfer1::DynamicPluginTensorDesc> dynamic;
  for (const Tensor& input : inputs) dynamic.push_back(input.dynamic());
  return node.build().configurePlugin(dynamic.data(), static_cast<int32_t>(dynamic.size()), nullptr,
                                      0);
}

void test_tensors() {
  const PluginNode node = create(experts());
  run_case("shapes_and_types_are_checked_when_configured", [&] {
    expect(configure(node, inputs_of_experts()) == 0, moe_export_last_error());
    const auto refused = [&](size_t index, DataType type, std::vector<int64_t> shape,
                             const std::string& reason) {
      std::vector<Tensor> inputs = inputs_of_experts();
      inputs[index] = {type, std::move(shape), {}};
      expect_refused(configure(node, inputs), "moe_export: " + reason);
    };
    refused(0, DataType::kHALF, {5, 33}, "experts_c1: x must be [T, H = 32]; found [5, 33]");
    refused(0, DataType::kINT64, {5, 32}, "experts_inputs: x must be float32, float16 or bfloat16");
    refused(0, DataType::kFLOAT, {5, 32},
            "experts_c4: this library does not compute weight_type fp16 with x of fp32");
    refused(1, DataType::kINT64, {6, 2}, "experts_c2: expert_ids must be [T = 5, K]; found [6, 2]");
    refused(1, DataType::kFLOAT, {5, 2}, "experts_inputs: expert_ids must be int32 or int64; fou");
    refused(2, DataType::kFLOAT, {5}, "experts_c3: expert_weights must have expert_ids' shape");
    refused(2, DataType::kHALF, {5, 2}, "experts_inputs: expert_weights must be float32; found fl");
    refused(3, DataType::kINT8, {4, 100},
            "experts_c4: up_weight must be [4, 12288]; found [4, 100");
    refused(4, DataType::kFP8, {4, 4096}, "experts_inputs: down_weight must be int8; found a type");
    refused(5, DataType::kFLOAT, {4, 48}, "experts_c5: up_bias must be [4, 96]; found [4, 48]");
    std::vector<Tensor> fewer = inputs_of_experts();
    fewer.pop_back();
    expect_refused(configure(node, fewer), "experts_inputs: the node takes x, expert_ids, ");
  });
  run_case("slots_of_the_largest_profile_fit_32_bits", [&] {
    std::vector<nvinfer1::DynamicPluginTensorDesc> tensors;
    for (const Tensor& input : inputs_of_experts()) tensors.push_back(input.dynamic());
    for (const size_t i : {0, 1, 2}) {
      tensors[i].desc.dims.d[0] = -1;
      tensors[i].max.d[0] = int64_t{1} << 30;
    }
    expect_refused(node.build().configurePlugin(tensors.data(), 7, nullptr, 0),
                   "experts_c2: expert_ids' slots T · K must be at most");
  });
  run_case("formats_are_linear_and_types_the_contracts", [&] {
    std::vector<nvinfer1::DynamicPluginTensorDesc> tensors;
    for (const Tensor& input : inputs_of_experts()) tensors.push_back(input.dynamic());
    tensors.push_back(tensors[0]);
    const auto supported = [&](int32_t position) {
      return node.build().supportsFormatCombination(position, tensors.data(), 7, 1);
    };
    for (int32_t i = 0; i < 8; ++i) expect(supported(i), "tensor " + std::to_string(i));
    for (int32_t i = 0; i < 8; ++i) {
      auto& tensor = tensors[i].desc;
      const auto right = tensor;
      tensor.format = nvinfer1::TensorFormat::kCHW32;
      expect(!supported(i), "format of " + std::to_string(i));
      tensor = right;
      for (const DataType type : {DataType::kFP8, DataType::kINT4, DataType::kBOOL}) {
        tensor.type = type;
        expect(!supported(i), "type of " + std::to_string(i));
      }
      tensor = right;
    }
  });
  run_case("gating_knows_its_limits", [] {
    TopKGatingAttributes a;
    a.top_k = 33;
    FieldList fields;
    a.visit(trt::FieldWriter(fields));
    expect_refused(create("TopKGating", *fields.collection()) == nullptr,
                   "gating_c2: this library computes top_k up to 32; found 33");
    a.top_k = 2;
    expect_refused(configure(create(a), {{DataType::kFLOAT, {5, 2049}, {}}}),
                   "gating_c1: this library computes up to 2048 experts; logits has 2049");
    expect_refused(configure(create(a), {{DataType::kFLOAT, {5, 1}, {}}}),
                   "gating_c2: top_k = 2 exceeds the 1 experts of logits");
  });
}

void test_tactics() {
  run_case("tactics_are_the_tiles_and_one_for_the_call's_own", [] {
    const PluginNode node = create(experts());
    expect(node.build().getNbTactics() == 0, "none before the type is known");
    expect(configure(node, inputs_of_experts()) == 0, moe_export_last_error());
    std::vector<int32_t> tactics(node.build().getNbTactics());
    expect(node.build().getValidTactics(tactics.data(), static_cast<int32_t>(tactics.size())) == 0,
           "status");
    expect(tactics == std::vector<int32_t>{1, 16, 64}, "tactics");
    expect_refused(node.runtime().setTactic(32), "this library has no tiles of 32 rows");
  });
  run_case("the_kernels_of_an_engine_are_loaded_when_it_is_attached", [] {
    const PluginNode node = create(experts());
    expect(configure(node, inputs_of_experts()) == 0, moe_export_last_error());
    const PluginNode read = serialized_and_read(node);
    host_calls().prepared.clear();
    const PluginNode attached(read.runtime().attachToContext(nullptr));
    expect(host_calls().prepared == std::vector<std::string>{"GroupedExperts fp16"}, "prepared");
  });
  run_case("a_call_takes_the_tactic_that_is_set", [] {
    std::vector<Tensor> inputs = inputs_of_experts();
    for (Tensor& input : inputs) input.bytes.assign(count_of(input.shape) * 8, 0);
    const PluginNode node = create(experts());
    for (const auto& [tactic, tile_rows] : {std::pair{0, 0}, {1, 0}, {16, 16}, {64, 64}}) {
      run(node, inputs, tactic);
      expect(host_calls().tile_rows == tile_rows, "tile of tactic " + std::to_string(tactic));
    }
  });
  run_case("a_tactic_survives_clone_and_attach", [] {
    const PluginNode node = create(experts());
    expect(node.runtime().setTactic(64) == 0, moe_export_last_error());
    const PluginNode clone(node.plugin().clone());
    const PluginNode attached(clone.runtime().attachToContext(nullptr));
    std::vector<nvinfer1::PluginTensorDesc> described;
    std::vector<const void*> inputs;
    std::vector<Tensor> tensors = inputs_of_experts();
    for (Tensor& tensor : tensors) {
      tensor.bytes.assign(count_of(tensor.shape) * 8, 0);
      described.push_back(tensor.description());
      inputs.push_back(tensor.bytes.data());
    }
    std::vector<char> y(5 * 32 * 2), workspace(1 << 16);
    void* const outputs[] = {y.data()};
    auto& runtime = attached.runtime();
    expect(runtime.onShapeChange(described.data(), 7, described.data(), 1) == 0,
           moe_export_last_error());
    expect(runtime.enqueue(described.data(), described.data(), inputs.data(), outputs,
                           workspace.data(), nullptr) == 0,
           moe_export_last_error());
    expect(host_calls().tile_rows == 64, "tile");
  });
}

void test_failures() {
  run_case("a_context_without_kernels_is_refused", [] {
    const PluginNode node = create(experts());
    expect(configure(node, inputs_of_experts()) == 0, moe_export_last_error());
    const PluginNode read = serialized_and_read(node);
    host_calls().can_load = false;
    const PluginPointer attached(read.runtime().attachToContext(nullptr));
    host_calls().can_load = true;
    expect_refused(attached == nullptr, "no kernel for this device (layers.3/node)");
  });
  run_case("what_enqueue_fails_by_is_reported", [] {
    host_calls().prepared.clear();
    const PluginNode node = create(experts());
    std::vector<nvinfer1::PluginTensorDesc> described;
    for (const Tensor& tensor : inputs_of_experts()) described.push_back(tensor.description());
    const std::vector<const void*> inputs(7, nullptr);
    void* const outputs[] = {nullptr};
    expect_refused(node.runtime().enqueue(described.data(), described.data(), inputs.data(),
                                          outputs, nullptr, nullptr),
                   "GroupedExperts fp16 is not loaded");
  });
}

}  // namespace

int main() {
  for (const char* op_type : kOpTypes) {
    run_case(std::string("identity_") + op_type, [&] {
      auto& creator = creator_of(op_type);
      expect(std::string(creator.getPluginVersion()) == "1", "version");
      expect(std::string(creator.getPluginNamespace()).empty(), "namespace");
    });
  }
  test_round_trips(gating());
  test_round_trips(experts());
  test_round_trips(ExpertDispatchAttributes{4, 32, 3});
  test_round_trips(matmul());
  test_round_trips(ExpertCombineAttributes{32});
  test_wrong_fields();
  test_tensors();
  test_tactics();
  test_failures();
  return finish();
}
