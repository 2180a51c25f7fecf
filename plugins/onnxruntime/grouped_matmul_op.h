#pragma once
#include "custom_op.h"
#include "isa.h"
#include "spec/contract.h"

namespace moe_export::ort {

/// `GroupedMatMul` on the CPU: checks, then multiplies on the session's threads.
class GroupedMatMulKernel {
 public:
  using Attributes = GroupedMatMulAttributes;
  static constexpr const char* kOpType = Attributes::kOpType;
  static constexpr size_t kMaxInputs = 6;
  static constexpr ONNXTensorElementDataType kOutputTypes[] = {kActivationType};

  /// @throws ContractError an attribute or the number of inputs is wrong, or asks for what this
  ///   library does not compute.
  GroupedMatMulKernel(const OrtApi* api, const OrtKernelInfo* info);

  const OrtApi* api() const { return api_; }

  /// @throws ContractError a tensor's type, shape or content is wrong.
  void compute(OrtKernelContext* context) const;

  static void infer_shapes(const OrtApi* api, OrtShapeInferContext* context);

 private:
  const OrtApi* api_;
  cpu::Isa isa_;
  GroupedMatMulAttributes attributes_;
};

}  // namespace moe_export::ort
