#pragma once
#include "errors.h"
#include "isa.h"
#include "spec/contract.h"

namespace moe_export::ort {

/// `GroupedExperts` on the CPU: checks, then runs the kernels on the session's threads.
class GroupedExpertsKernel {
 public:
  static constexpr const char* kOpType = GroupedExpertsAttributes::kOpType;
  static constexpr size_t kMaxInputs = 11;
  static constexpr ONNXTensorElementDataType kOutputTypes[] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT};

  /// @throws ContractError an attribute or the number of inputs is wrong, or asks for what this
  ///   library does not compute.
  GroupedExpertsKernel(const OrtApi* api, const OrtKernelInfo* info);

  const OrtApi* api() const { return api_; }

  /// @throws ContractError a tensor's type or shape is wrong.
  void compute(OrtKernelContext* context) const;

  static void infer_shapes(const OrtApi* api, OrtShapeInferContext* context);

 private:
  const OrtApi* api_;
  cpu::Isa isa_;
  GroupedExpertsAttributes attributes_;
};

}  // namespace moe_export::ort
