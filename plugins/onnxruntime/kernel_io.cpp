#include "kernel_io.h"

#include <algorithm>
#include <memory>

namespace moe_export::ort {
namespace {

std::string type_name(ONNXTensorElementDataType type) {
  static constexpr const char* kNames[] = {"undefined",  "float32", "uint8",  "int8",   "uint16",
                                           "int16",      "int32",   "int64",  "string", "bool",
                                           "float16",    "double",  "uint32", "uint64", "complex64",
                                           "complex128", "bfloat16"};
  const auto index = static_cast<size_t>(type);
  return index < std::size(kNames) ? kNames[index] : "element type " + std::to_string(index);
}

}  // namespace

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  }
  return text + "]";
}

TensorView KernelIo::input(size_t index, const std::string& label, const std::string& name,
                           const std::vector<ONNXTensorElementDataType>& types_allowed) const {
  const OrtValue* value = nullptr;
  check(api_, KernelContext_GetInput(api_, context_, index, &value));
  require(value != nullptr, label, [&] { return name + " is left out"; });

  OrtTensorTypeAndShapeInfo* raw_info = nullptr;
  check(api_, GetTensorTypeAndShape(api_, value, &raw_info));
  const auto release = [this](auto* info) { ReleaseTensorTypeAndShapeInfo(api_, info); };
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(release)> info(raw_info, release);

  TensorView view;
  size_t rank = 0;
  check(api_, GetDimensionsCount(api_, info.get(), &rank));
  view.shape.resize(rank);
  check(api_, GetDimensions(api_, info.get(), view.shape.data(), rank));
  check(api_, GetTensorElementType(api_, info.get(), &view.type));
  const auto& allowed = types_allowed;
  require(std::count(allowed.begin(), allowed.end(), view.type) > 0, label, [&] {
    std::string names;
    for (const auto type : allowed) names += (names.empty() ? "" : " or ") + type_name(type);
    return name + " must be " + names + "; found " + type_name(view.type);
  });
  check(api_, GetTensorMutableData(api_, const_cast<OrtValue*>(value), &view.data));
  return view;
}

TensorView KernelIo::floats(size_t index, const std::string& inputs, const std::string& label,
                            const std::string& name, const Shape& expected) const {
  return shaped(index, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, inputs, label, name, expected);
}

TensorView KernelIo::weights(size_t index, const std::string& inputs, const std::string& label,
                             const std::string& name, const Shape& row_major,
                             int64_t packed_bytes) const {
  if (packed_bytes == 0) return floats(index, inputs, label, name, row_major);
  return shaped(index, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, inputs, label, name,
                {row_major[0], packed_bytes});
}

TensorView KernelIo::shaped(size_t index, ONNXTensorElementDataType type, const std::string& inputs,
                            const std::string& label, const std::string& name,
                            const Shape& expected) const {
  const TensorView view = input(index, inputs, name, {type});
  require(view.shape == expected, label, [&] {
    return name + " must be " + to_string(expected) + "; found " + to_string(view.shape);
  });
  return view;
}

void* KernelIo::allocate_output(size_t index, const Shape& shape) const {
  OrtValue* value = nullptr;
  check(api_, KernelContext_GetOutput(api_, context_, index, shape.data(), shape.size(), &value));
  void* data = nullptr;
  check(api_, GetTensorMutableData(api_, value, &data));
  return data;
}

void SessionThreadPool::run(size_t num_tasks, void (*task)(void*, size_t), void* context) {
  struct Job {
    void (*task)(void*, size_t);
    void* context;
    std::atomic_flag failed = ATOMIC_FLAG_INIT;
    std::exception_ptr error = nullptr;
  } job{task, context};
  const auto run_one = [](void* raw, size_t index) noexcept {
    Job& shared = *static_cast<Job*>(raw);
    try {
      shared.task(shared.context, index);
    } catch (...) {
      if (!shared.failed.test_and_set()) shared.error = std::current_exception();
    }
  };
  constexpr size_t kOneTaskAtATime = 0;
  check(api_, KernelContext_ParallelFor(api_, context_, run_one, num_tasks, kOneTaskAtATime, &job));
  if (job.error) std::rethrow_exception(job.error);
}

void check_input_count(const OrtApi* api, const OrtKernelInfo* info, const std::string& label,
                       const std::vector<std::string>& names) {
  size_t count = 0;
  check(api, KernelInfo_GetInputCount(api, info, &count));
  require(count == names.size(), label, [&] {
    std::string list;
    for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
    return "the node takes " + list + " without gaps; found " + std::to_string(count) + " inputs";
  });
}

}  // namespace moe_export::ort
