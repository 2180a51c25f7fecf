#pragma once
#include "custom_op.h"
#include "spec/contract.h"

namespace moe_export::ort {

/// `ExpertDispatch` on the CPU: checks, then sorts the slots on the session's threads.
class ExpertDispatchKernel {
 public:
  using Attributes = ExpertDispatchAttributes;
  static constexpr const char* kOpType = Attributes::kOpType;
  static constexpr size_t kMaxInputs = 2;
  static constexpr ONNXTensorElementDataType kOutputTypes[] = {
      kActivationType, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
      ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32};

  /// @throws ContractError an attribute or the number of inputs is wrong.
  ExpertDispatchKernel(const OrtApi* api, const OrtKernelInfo* info);

  const OrtApi* api() const { return api_; }

  /// @throws ContractError a tensor's type, shape or content is wrong.
  void compute(OrtKernelContext* context) const;

  static void infer_shapes(const OrtApi* api, OrtShapeInferContext* context);

 private:
  const OrtApi* api_;
  ExpertDispatchAttributes attributes_;
};

}  // namespace moe_export::ort
