// As much of ONNX Runtime as a kernel of onnxruntime/gpu_kernel.h asks for: one node, its
// attributes and its tensors, all in host memory.
#pragma once
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "check.h"
#include "onnxruntime/ort_api.h"
#include "spec/input_checks.h"

struct OrtStatus {
  std::string message;
};
struct OrtTensorTypeAndShapeInfo {
  ONNXTensorElementDataType type;
  moe_export::Shape shape;
};
struct OrtValue {
  ONNXTensorElementDataType type;
  moe_export::Shape shape;
  std::vector<char> bytes;
};
struct OrtKernelInfo {
  std::map<std::string, std::variant<int64_t, float, std::string>> attributes;
  size_t num_inputs;
};
struct OrtKernelContext {
  std::vector<OrtValue> inputs;
  std::vector<ONNXTensorElementDataType> output_types;
  std::vector<OrtValue> outputs;
  void* stream;
};

namespace moe_export::test {

inline int64_t bytes_of(ONNXTensorElementDataType type) {
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) return 8;
  const bool half = type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ||
                    type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
  return half ? 2 : 4;
}

template <class Value>
OrtStatus* read_attribute(const OrtKernelInfo* info, const char* name, Value* value) {
  const auto found = info->attributes.find(name);
  if (found == info->attributes.end() || !std::holds_alternative<Value>(found->second)) {
    return new OrtStatus{std::string("no attribute ") + name};
  }
  *value = std::get<Value>(found->second);
  return nullptr;
}

/// Puts a function into the table.
template <class Function>
void set_slot(OrtApi& api, size_t slot, Function* function) {
  api.slots[slot] = reinterpret_cast<void*>(function);
}

/// The table of functions; those that a kernel must not call are null.
inline OrtApi make_fake_api() {
  using Type = ONNXTensorElementDataType;
  using Info = OrtTensorTypeAndShapeInfo;
  OrtApi api = {};
  set_slot(api, 0, +[](OrtErrorCode, const char* text) { return new OrtStatus{text}; });
  set_slot(api, 2, +[](const OrtStatus* status) { return status->message.c_str(); });
  set_slot(api, 93, +[](OrtStatus* status) { delete status; });
  set_slot(
      api, 51, +[](OrtValue* value, void** data) -> OrtStatus* {
        *data = value->bytes.data();
        return nullptr;
      });
  set_slot(
      api, 65, +[](const OrtValue* value, Info** info) -> OrtStatus* {
        *info = new Info{value->type, value->shape};
        return nullptr;
      });
  set_slot(api, 99, +[](Info* info) { delete info; });
  set_slot(
      api, 60, +[](const Info* info, Type* type) -> OrtStatus* {
        *type = info->type;
        return nullptr;
      });
  set_slot(
      api, 61, +[](const Info* info, size_t* rank) -> OrtStatus* {
        *rank = info->shape.size();
        return nullptr;
      });
  set_slot(
      api, 62, +[](const Info* info, int64_t* sizes, size_t rank) -> OrtStatus* {
        std::copy_n(info->shape.begin(), rank, sizes);
        return nullptr;
      });
  set_slot(
      api, 85, +[](const OrtKernelInfo* info, const char* name, float* value) {
        return read_attribute(info, name, value);
      });
  set_slot(
      api, 86, +[](const OrtKernelInfo* info, const char* name, int64_t* value) {
        return read_attribute(info, name, value);
      });
  set_slot(
      api, 87, +[](const OrtKernelInfo* info, const char* name, char* text, size_t* size) {
        std::string value;
        OrtStatus* const status = read_attribute(info, name, &value);
        if (status == nullptr && text != nullptr) std::memcpy(text, value.c_str(), *size);
        *size = value.size() + 1;
        return status;
      });
  set_slot(
      api, 230, +[](const OrtKernelInfo* info, size_t* count) -> OrtStatus* {
        *count = info->num_inputs;
        return nullptr;
      });
  set_slot(
      api, 90,
      +[](const OrtKernelContext* context, size_t i, const OrtValue** value) -> OrtStatus* {
        *value = &context->inputs.at(i);
        return nullptr;
      });
  set_slot(
      api, 91,
      +[](OrtKernelContext* context, size_t i, const int64_t* sizes, size_t rank,
          OrtValue** value) -> OrtStatus* {
        const Shape shape(sizes, sizes + rank);
        int64_t bytes = bytes_of(context->output_types.at(i));
        for (const int64_t size : shape) bytes *= size;
        context->outputs.at(i) = {context->output_types[i], shape, std::vector<char>(bytes)};
        *value = &context->outputs[i];
        return nullptr;
      });
  set_slot(
      api, 193, +[](const OrtKernelContext* context, void** stream) -> OrtStatus* {
        *stream = context->stream;
        return nullptr;
      });
  return api;
}

}  // namespace moe_export::test
