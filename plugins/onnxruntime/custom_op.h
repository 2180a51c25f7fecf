#pragma once
#include <iterator>
#include <limits>

#include "errors.h"
#include "spec/contract.h"

namespace moe_export::ort {

/// Stands in `kOutputTypes` for the type of the activations, that is of input 0.
inline constexpr auto kActivationType = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;

/// Whether an output has the activations' type.
template <class Kernel>
constexpr bool has_activation_output() {
  for (const ONNXTensorElementDataType type : Kernel::kOutputTypes) {
    if (type == kActivationType) return true;
  }
  return false;
}

/// The runtime's view of the op that `Kernel` computes. `Kernel` has
/// - `kOpType`, `kMaxInputs` and `kOutputTypes`;
/// - a constructor from (api, info) that checks the node and throws;
/// - `api()`, `compute(context) const`, and a static `infer_shapes(api, context)`.
template <class Kernel>
struct CustomOp : OrtCustomOp {
  /// @param provider         the runtime's name of what computes the op.
  /// @param activations_type type of input 0, and of outputs that have it; undefined for all that
  ///   no other op of the name takes. The runtime finds outputs' types by it, in the order in which
  ///   ops of one name are added.
  CustomOp(const OrtApi* runtime_api, const char* provider,
           ONNXTensorElementDataType activations_type)
      : OrtCustomOp{}, api(runtime_api), provider(provider), activations(activations_type) {
    version = kApiVersion;
    GetName = [](const OrtCustomOp*) { return Kernel::kOpType; };
    GetExecutionProviderType = [](const OrtCustomOp* op) { return self(op)->provider; };
    describe_inputs_and_outputs();
    GetStartVersion = [](const OrtCustomOp*) { return kVersion; };
    GetEndVersion = [](const OrtCustomOp*) { return std::numeric_limits<int>::max(); };
    CreateKernelV2 = create_kernel;
    KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      const auto* const computing = static_cast<const Kernel*>(kernel);
      return guard(computing->api(), [&] { computing->compute(context); });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    InferOutputShapeFn = [](const OrtCustomOp* op, OrtShapeInferContext* context) {
      const OrtApi* const api = self(op)->api;
      return guard(api, [&] { Kernel::infer_shapes(api, context); });
    };
  }

  const OrtApi* const api;
  const char* const provider;
  const ONNXTensorElementDataType activations;

 private:
  static const CustomOp* self(const OrtCustomOp* op) { return static_cast<const CustomOp*>(op); }

  // Inputs are declared optional and, but for the first, of any type, so that it is the kernel that
  // refuses a wrong node, and says so in the contract's terms.
  void describe_inputs_and_outputs() {
    GetInputTypeCount = [](const OrtCustomOp*) { return Kernel::kMaxInputs; };
    GetInputType = [](const OrtCustomOp* op, size_t i) {
      return i == 0 ? self(op)->activations : ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_OPTIONAL; };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    GetOutputTypeCount = [](const OrtCustomOp*) { return std::size(Kernel::kOutputTypes); };
    GetOutputType = [](const OrtCustomOp* op, size_t i) {
      const ONNXTensorElementDataType type = Kernel::kOutputTypes[i];
      if (type != kActivationType) return type;
      const ONNXTensorElementDataType activations = self(op)->activations;
      const bool any = activations == ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
      return any ? ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT : activations;
    };
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
