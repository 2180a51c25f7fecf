#pragma once
#include <atomic>
#include <exception>
#include <string>
#include <vector>

#include "errors.h"
#include "parallel.h"

namespace moe_export::ort {

using Shape = std::vector<int64_t>;

/// "[3, 32]".
std::string to_string(const Shape& shape);

/// A tensor that the runtime owns.
struct TensorView {
  void* data = nullptr;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  Shape shape;

  const float* floats() const { return static_cast<const float*>(data); }
  const int32_t* int32s() const { return static_cast<const int32_t*>(data); }
};

/// Inputs and outputs of one call of a kernel, with messages in the contract's terms.
class KernelIo {
 public:
  KernelIo(const OrtApi* api, OrtKernelContext* context) : api_(api), context_(context) {}

  /// Input `index`.
  /// @param types_allowed element types it may have.
  /// @throws ContractError the input is left out, or has another type.
  TensorView input(size_t index, const std::string& label, const std::string& name,
                   const std::vector<ONNXTensorElementDataType>& types_allowed) const;

  /// Input `index`, which must be float32 of the shape `expected`.
  /// @param inputs the label of a wrong type.
  /// @param label  the label of a wrong shape.
  /// @throws ContractError the input is left out, or has another type or shape.
  TensorView floats(size_t index, const std::string& inputs, const std::string& label,
                    const std::string& name, const Shape& expected) const;

  /// Input `index`, weights of E experts: float32 of the shape `row_major`, or packed.
  /// @param packed_bytes bytes of one expert's panels, 0 where weights are row-major.
  /// @throws ContractError the input is left out, or has another type or shape.
  TensorView weights(size_t index, const std::string& inputs, const std::string& label,
                     const std::string& name, const Shape& row_major, int64_t packed_bytes) const;

  /// Data of output `index`, allocated with `shape`.
  template <class T>
  T* output(size_t index, const Shape& shape) const {
    return static_cast<T*>(allocate_output(index, shape));
  }

 private:
  TensorView shaped(size_t index, ONNXTensorElementDataType type, const std::string& inputs,
                    const std::string& label, const std::string& name, const Shape& expected) const;

  void* allocate_output(size_t index, const Shape& shape) const;

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
