#pragma once
#include <iterator>
#include <limits>

#include "errors.h"
#include "spec/contract.h"

namespace moe_export::ort {

/// The runtime's view of the op that `Kernel` computes. `Kernel` has
/// - `kOpType`, `kMaxInputs` and `kOutputTypes`;
/// - a constructor from (api, info) that checks the node and throws;
/// - `api()`, `compute(context) const`, and a static `infer_shapes(api, context)`.
template <class Kernel>
struct CustomOp : OrtCustomOp {
  explicit CustomOp(const OrtApi* runtime_api) : OrtCustomOp{}, api(runtime_api) {
    version = kApiVersion;
    GetName = [](const OrtCustomOp*) { return Kernel::kOpType; };
    GetExecutionProviderType = [](const OrtCustomOp*) { return "CPUExecutionProvider"; };
    describe_inputs_and_outputs();
    GetStartVersion = [](const OrtCustomOp*) { return kVersion; };
    GetEndVersion = [](const OrtCustomOp*) { return std::numeric_limits<int>::max(); };
    CreateKernelV2 = create_kernel;
    KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      const auto* const self = static_cast<const Kernel*>(kernel);
      return guard(self->api(), [&] { self->compute(context); });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    InferOutputShapeFn = [](const OrtCustomOp* op, OrtShapeInferContext* context) {
      const OrtApi* const api = static_cast<const CustomOp*>(op)->api;
      return guard(api, [&] { Kernel::infer_shapes(api, context); });
    };
  }

  const OrtApi* const api;

 private:
  // Inputs are declared optional and of any type, so that it is the kernel that refuses a wrong
  // node, and says so in the contract's terms.
  void describe_inputs_and_outputs() {
    GetInputTypeCount = [](const OrtCustomOp*) { return Kernel::kMaxInputs; };
    GetInputType = [](const OrtCustomOp*, size_t) {
      return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_OPTIONAL; };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    GetOutputTypeCount = [](const OrtCustomOp*) { return std::size(Kernel::kOutputTypes); };
    GetOutputType = [](const OrtCustomOp*, size_t i) { return Kernel::kOutputTypes[i]; };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    GetVariadicInputMinArity = GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
    GetVariadicInputHomogeneity =
        GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  }

  static OrtStatus* create_kernel(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info,
                                  void** kernel) {
    return guard(api, [&] { *kernel = new Kernel(api, info); });
  }
};

}  // namespace moe_export::ort
