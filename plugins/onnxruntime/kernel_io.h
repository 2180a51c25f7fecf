#pragma once
#include <atomic>
#include <exception>
#include <string>
#include <vector>

#include "errors.h"
#include "expert_plan.h"
#include "parallel.h"
#include "spec/input_checks.h"

namespace moe_export::ort {

/// A tensor that the runtime owns.
struct TensorView {
  void* data = nullptr;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  Shape shape;

  const float* floats() const { return static_cast<const float*>(data); }
  const int32_t* int32s() const { return static_cast<const int32_t*>(data); }
  cpu::ExpertIds ids() const { return {data, type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64}; }
};

/// Inputs and outputs of one call of a kernel, with messages in the contract's terms.
class KernelIo {
 public:
  KernelIo(const OrtApi* api, OrtKernelContext* context) : api_(api), context_(context) {}

  /// Input `index`.
  /// @param types_allowed element types it may have; none for any.
  /// @throws ContractError the input is left out, or has another type.
  TensorView input(size_t index, const std::string& label, const std::string& name,
                   const std::vector<ONNXTensorElementDataType>& types_allowed) const;

  /// Input `index`, float32.
  TensorView floats(size_t index, const std::string& label, const std::string& name) const;

  /// Input `index`, the experts that tokens chose: int32 or int64.
  TensorView expert_ids(size_t index, const std::string& label) const;

  /// Input `index`, weights of experts: float32, or bytes where they are packed.
  /// @param packed_bytes of one expert, 0 where weights are row-major.
  TensorView weights(size_t index, const std::string& label, const std::string& name,
                     int64_t packed_bytes) const;

  /// Data of output `index`, allocated with `shape`.
  template <class T>
  T* output(size_t index, const Shape& shape) const {
    return static_cast<T*>(allocate_output(index, shape));
  }

  /// Data of output `index`, allocated with `shape`.
  void* allocate_output(size_t index, const Shape& shape) const;

 private:
  const OrtApi* api_;
  OrtKernelContext* context_;
};

/// The session's threads for the time of one call.
class SessionThreadPool final : public cpu::ThreadPool {
 public:
  SessionThreadPool(const OrtApi* api, const OrtKernelContext* context)
      : api_(api), context_(context) {}

  /// Rethrows the first exception of a task after all have ended: one that left a task on a thread
  /// of the runtime would end the process.
  void run(size_t num_tasks, void (*task)(void*, size_t), void* context) override;

 private:
  const OrtApi* api_;
  const OrtKernelContext* context_;
};

/// Throws unless the node has exactly the inputs `names`.
void check_input_count(const OrtApi* api, const OrtKernelInfo* info, const std::string& label,
                       const std::vector<std::string>& names);

}  // namespace moe_export::ort
