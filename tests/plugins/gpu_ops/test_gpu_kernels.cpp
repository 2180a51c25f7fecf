// ONNX Runtime's ops for GPUs over the table of libmoe_export_cuda.so, with host functions and
// scratch on the CPU: what they compute, and what they refuse.
#include "elements.h"
#include "expert_layer.h"
#include "fake_runtime.h"
#include "gpu_ops/op_table.h"
#include "host_functions.h"
#include "onnxruntime/expert_combine_op.h"
#include "onnxruntime/expert_dispatch_op.h"
#include "onnxruntime/gpu_kernel.h"
#include "onnxruntime/grouped_experts_op.h"
#include "onnxruntime/grouped_matmul_op.h"
#include "onnxruntime/top_k_gating_op.h"
#include "stream_memory_on_host.h"

extern "C" const moe_export::gpu::GpuLibrary* moe_export_gpu_library();

using namespace moe_export;
using namespace moe_export::test;
using cuda::ElementType;

namespace moe_export::ort {

/// The table that is linked in, not that of a library on disk.
const gpu::GpuOp& gpu_op(const char* op_type) {
  const gpu::GpuLibrary& library = *moe_export_gpu_library();
  for (size_t i = 0; i < library.num_ops; ++i) {
    if (std::string(library.ops[i].op_type) == op_type) return library.ops[i];
  }
  throw std::runtime_error(std::string("no ") + op_type);
}

}  // namespace moe_export::ort

namespace {

constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto kInt32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
constexpr auto kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr auto kInt8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
constexpr auto kBf16 = ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;

const OrtApi kApi = make_fake_api();
char stream_of_session;

template <class T>
OrtValue value(ONNXTensorElementDataType type, Shape shape, const std::vector<T>& values) {
  OrtValue made = {type, std::move(shape), std::vector<char>(values.size() * sizeof(T))};
  if (!values.empty()) std::memcpy(made.bytes.data(), values.data(), made.bytes.size());
  return made;
}

OrtValue half(Shape shape, const std::vector<float>& values) {
  return {kBf16, std::move(shape), from_floats(ElementType::kBf16, values)};
}

template <class T>
std::vector<T> read(const OrtValue& value) {
  std::vector<T> values(value.bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), value.bytes.data(), value.bytes.size());
  return values;
}

std::vector<float> read_half(const OrtValue& value) {
  return to_floats(ElementType::kBf16, value.bytes.data(),
                   static_cast<int64_t>(value.bytes.size() / 2));
}

template <class Attributes>
OrtKernelInfo info_of(Attributes attributes, size_t num_inputs) {
  OrtKernelInfo info = {{}, num_inputs};
  attributes.visit([&](const char* name, auto value) {
    if constexpr (std::is_enum_v<decltype(value)>) {
      info.attributes[name] =
          std::string(EnumNames<decltype(value)>::kValues[static_cast<size_t>(value)]);
    } else if constexpr (std::is_same_v<decltype(value), float>) {
      info.attributes[name] = value;
    } else {
      info.attributes[name] = static_cast<int64_t>(value);
    }
  });
  return info;
}

/// The outputs of a node, through all that the runtime calls.
template <class CpuKernel>
std::vector<OrtValue> run(const typename CpuKernel::Attributes& attributes,
                          const std::vector<OrtValue>& inputs,
                          const std::vector<ONNXTensorElementDataType>& output_types) {
  const OrtKernelInfo info = info_of(attributes, inputs.size());
  const ort::GpuKernel<CpuKernel> kernel(&kApi, &info);
  OrtKernelContext context = {inputs, output_types, std::vector<OrtValue>(output_types.size()),
                              &stream_of_session};
  stream_memory_use() = {};
  kernel.compute(&context);
  const StreamMemoryUse use = stream_memory_use();
  expect(use.stream == &stream_of_session, "the session's stream");
  expect(use.num_allocated == use.num_freed, "scratch is freed");
  return context.outputs;
}

/// Fails unless `body` throws a `ContractError` that begins with `reason`.
template <class Body>
void expect_refused(const std::string& reason, Body&& body) {
  std::string found = "nothing";
  try {
    body();
  } catch (const ContractError& error) {
    found = error.what();
  }
  expect(found.rfind(reason, 0) == 0, "refused for " + found);
}

Layer half_layer(int64_t num_tokens) {
  GroupedExpertsAttributes a = attributes_of({num_tokens, 3, 4, 20, 12});
  a.has_bias = true;
  a.weight_type = WeightType::kBf16;
  a.weight_layout = WeightLayout::kCudaV1;
  Layer layer = random_layer(a, num_tokens, 3);
  for (auto* const values : {&layer.x, &layer.up, &layer.down}) {
    *values = to_floats(ElementType::kBf16, from_floats(ElementType::kBf16, *values).data(),
                        static_cast<int64_t>(values->size()));
  }
  return layer;
}

std::vector<OrtValue> values_of(const Layer& layer) {
  const auto& a = layer.attributes;
  const int64_t e = a.num_experts, h = a.hidden_size, i = a.intermediate_size;
  const Shape slots = {layer.num_tokens, layer.top_k};
  const auto packed = [&](const std::vector<float>& weight, int64_t rows, int64_t columns) {
    return value(kInt8, {e, packed_bytes(ElementType::kBf16, rows, columns)},
                 pack_rows(ElementType::kBf16, weight, e, rows, columns));
  };
  return {half({layer.num_tokens, h}, layer.x),
          value(kInt64, slots, layer.ids),
          value(kFloat, slots, layer.weights),
          packed(layer.up, 2 * i, h),
          packed(layer.down, h, i),
          value(kFloat, {e, 2 * i}, layer.up_bias),
          value(kFloat, {e, h}, layer.down_bias)};
}

void prepare_all() {
  for (const ElementType element : {ElementType::kFp32, ElementType::kFp16, ElementType::kBf16}) {
    for (const char* op :
         {"TopKGating", "GroupedExperts", "ExpertDispatch", "GroupedMatMul", "ExpertCombine"}) {
      host_calls().prepared.push_back(std::string(op) + " " + std::string(name_of(element)));
    }
  }
}

void test_computing() {
  for (const int64_t num_tokens : {0, 1, 7}) {
    run_case("experts_of_" + std::to_string(num_tokens), [&] {
      const Layer layer = half_layer(num_tokens);
      const auto y = run<ort::GroupedExpertsKernel>(layer.attributes, values_of(layer), {kBf16});
      expect(y[0].shape == Shape{num_tokens, 20}, "shape");
      expect_close(read_half(y[0]), reference(layer), 1.6e-2);
    });
  }
  run_case("dispatch_matmul_and_combine", [] {
    const auto rows = run<ort::ExpertDispatchKernel>(
        {2, 2, 5},
        {half({3, 2}, {1, 2, 3, 4, 5, 6}),
         value(kInt32, {3, 2}, std::vector<int32_t>{6, 5, 5, 9, -1, 6})},
        {kBf16, kInt32, kInt32, kInt32});
    expect(read<int32_t>(rows[1]) == std::vector<int32_t>{2, 0, 1, -1, -1, 3}, "row_map");
    expect(read<int32_t>(rows[3]) == std::vector<int32_t>{0, 0, 1, 1, 1, 1}, "row_experts");
    const std::vector<float> weight = {1, 1, 2, 4};  // expert 0 sums, expert 1 weighs
    const auto y = run<ort::GroupedMatMulKernel>(
        {2, 2, 1, false, WeightType::kBf16, 0, false, WeightLayout::kCudaV1},
        {rows[0],
         value(kInt8, {2, packed_bytes(ElementType::kBf16, 1, 2)},
               pack_rows(ElementType::kBf16, weight, 2, 1, 2)),
         rows[2]},
        {kBf16});
    // Rows: token 0 and 1 for expert 0 (id 5), token 0 and 2 for expert 1.
    expect(read_half(y[0]) == std::vector<float>{3, 7, 10, 34, 0, 0}, "rows of the experts");
    const auto sums = run<ort::ExpertCombineKernel>(
        {1}, {y[0], rows[1], value(kFloat, {3, 2}, std::vector<float>{1, 2, 3, 9, 9, 0})}, {kBf16});
    expect(read_half(sums[0]) == std::vector<float>{16, 21, 0}, "sums by weight");
  });
  run_case("gating", [] {
    TopKGatingAttributes a;
    a.top_k = 2;
    a.has_selection_bias = true;
    a.score_function = ScoreFunction::kIdentity;
    const auto out = run<ort::TopKGatingKernel>(
        a, {half({2, 3}, {1, 3, 2, 4, -1, 4}), value(kFloat, {3}, std::vector<float>{5, 0, 0})},
        {kInt32, kFloat});
    expect(read<int32_t>(out[0]) == std::vector<int32_t>{0, 1, 0, 2}, "ids");
    expect(read<float>(out[1]) == std::vector<float>{1, 3, 4, 4}, "weights");
  });
}

void test_refusing() {
  const Layer layer = half_layer(3);
  const auto refused = [&](const std::string& reason, const Layer& changed,
                           const std::vector<OrtValue>& inputs) {
    expect_refused(reason,
                   [&] { run<ort::GroupedExpertsKernel>(changed.attributes, inputs, {kBf16}); });
  };
  run_case("wrong_nodes_are_refused_by_label", [&] {
    Layer changed = layer;
    changed.attributes.weight_layout = WeightLayout::kCpuV1;
    refused("experts_c4: this library computes weight_layout cuda_v1; found cpu_v1", changed,
            values_of(layer));
    changed = layer;
    changed.attributes.num_experts = 0;
    refused("experts_c6: num_experts must be at least 1", changed, values_of(layer));
    changed = layer;
    changed.attributes.has_bias = false;
    refused("experts_inputs: the node takes x, expert_ids,", changed, values_of(layer));
  });
  run_case("wrong_tensors_are_refused_by_label", [&] {
    auto inputs = values_of(layer);
    inputs[0].type = kFloat;
    refused("experts_c4: this library does not compute weight_type bf16 with x of fp32", layer,
            inputs);
    inputs = values_of(layer);
    inputs[1].type = kFloat;
    refused("experts_inputs: expert_ids must be int32 or int64; found float32", layer, inputs);
    inputs = values_of(layer);
    inputs[4].shape[1] -= 128;
    refused("experts_c4: down_weight must be [4, 2560]; found [4, 2432]", layer, inputs);
    inputs = values_of(layer);
    inputs[2].shape = {3, 2};
    refused("experts_c3: expert_weights must have expert_ids' shape [3, 3]", layer, inputs);
  });
  run_case("what_a_launch_fails_by_is_said", [&] {
    host_calls().prepared.clear();
    std::string found;
    try {
      run<ort::GroupedExpertsKernel>(layer.attributes, values_of(layer), {kBf16});
    } catch (const std::runtime_error& error) {
      found = error.what();
    }
    expect(found == "moe_export: GroupedExperts bf16 is not loaded", found);
    expect(stream_memory_use().num_freed == 1, "scratch is freed");
  });
}

}  // namespace

int main() {
  prepare_all();
  test_computing();
  test_refusing();
  return finish();
}
