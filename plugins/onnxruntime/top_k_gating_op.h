#pragma once
#include "errors.h"
#include "isa.h"
#include "spec/contract.h"

namespace moe_export::ort {

/// `TopKGating` on the CPU: checks, then runs the kernel on the session's threads.
class TopKGatingKernel {
 public:
  using Attributes = TopKGatingAttributes;
  static constexpr const char* kOpType = Attributes::kOpType;
  static constexpr size_t kMaxInputs = 2;
  static constexpr ONNXTensorElementDataType kOutputTypes[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
                                                               ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};

  /// @throws ContractError an attribute or the number of inputs is wrong.
  TopKGatingKernel(const OrtApi* api, const OrtKernelInfo* info);

  const OrtApi* api() const { return api_; }

  /// @throws ContractError a tensor's type or shape is wrong.
  void compute(OrtKernelContext* context) const;

  static void infer_shapes(const OrtApi* api, OrtShapeInferContext* context);

 private:
  const OrtApi* api_;
  cpu::Isa isa_;
  TopKGatingAttributes attributes_;
};

}  // namespace moe_export::ort
