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
  const bool any = allowed.empty();
  require(any || std::count(allowed.begin(), allowed.end(), view.type) > 0, label, [&] {
    std::string names;
    for (const auto type : allowed) names += (names.empty() ? "" : " or ") + type_name(type);
    return name + " must be " + names + "; found " + type_name(view.type);
  });
  check(api_, GetTensorMutableData(api_, const_cast<OrtValue*>(value), &view.data));
  return view;
}

TensorView KernelIo::floats(size_t index, const std::string& label, const std::string& name) const {
  return input(index, label, name, {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT});
}

TensorView KernelIo::expert_ids(size_t index, const std::string& label) const {
  return input(index, label, "expert_ids",
               {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64});
}

TensorView KernelIo::weights(size_t index, const std::string& label, const std::string& name,
                             int64_t packed_bytes) const {
  if (packed_bytes == 0) return floats(index, label, name);
  return input(index, label, name, {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8});
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
  moe_export::check_input_count(label, names, count);
}

}  // namespace moe_export::ort
