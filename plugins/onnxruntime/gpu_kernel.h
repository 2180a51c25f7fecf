#pragma once
#include <stdexcept>
#include <string>
#include <vector>

#include "attribute_reader.h"
#include "gpu_library.h"
#include "kernel_io.h"
#include "spec/attribute_checks.h"

namespace moe_export::ort {

/// Types as the GPU ops have them.
gpu::TensorType tensor_type_of(ONNXTensorElementDataType type);

/// The op of `CpuKernel` on a GPU: checks, then launches kernels on the session's stream.
template <class CpuKernel>
class GpuKernel {
 public:
  using Attributes = typename CpuKernel::Attributes;
  static constexpr const char* kOpType = CpuKernel::kOpType;
  static constexpr size_t kMaxInputs = CpuKernel::kMaxInputs;
  static constexpr auto& kOutputTypes = CpuKernel::kOutputTypes;

  /// @throws ContractError an attribute or the number of inputs is wrong, or asks for what the
  ///   library does not compute.
  GpuKernel(const OrtApi* api, const OrtKernelInfo* info) : api_(api), op_(gpu_op(kOpType)) {
    const std::string prefix = label_prefix(attributes_);
    attributes_.visit(AttributeReader(api, info, prefix + "_attributes"));
    check_attributes(attributes_);
    refuse(op_.check_attributes(&attributes_));
    check_input_count(api, info, prefix + "_inputs", input_names(attributes_));
  }

  const OrtApi* api() const { return api_; }

  /// @throws ContractError a tensor's type or shape is wrong.
  void compute(OrtKernelContext* context) const {
    const KernelIo io(api_, context);
    const std::vector<std::string> names = input_names(attributes_);
    std::vector<TensorView> views;
    std::vector<Shape> shapes;
    std::vector<gpu::TensorRef> inputs;
    for (size_t i = 0; i < names.size(); ++i) {
      views.push_back(
          io.input(i, std::string(label_prefix(attributes_)) + "_inputs", names[i], {}));
      shapes.push_back(views[i].shape);
    }
    for (size_t i = 0; i < names.size(); ++i) {
      inputs.push_back({views[i].data, shapes[i].data(), static_cast<int32_t>(shapes[i].size()),
                        tensor_type_of(views[i].type)});
    }
    refuse(op_.check_inputs(&attributes_, inputs.data(), inputs.size()));
    std::vector<void*> outputs;
    for (const Shape& shape : output_shapes(attributes_, shapes)) {
      outputs.push_back(io.allocate_output(outputs.size(), shape));
    }
    void* stream = nullptr;
    check(api_, KernelContext_GetGPUComputeStream(api_, context, &stream));
    const char* const failure =
        op_.run(&attributes_, inputs.data(), inputs.size(), outputs.data(), stream);
    if (failure != nullptr) throw std::runtime_error(std::string("moe_export: ") + failure);
  }

  static void infer_shapes(const OrtApi* api, OrtShapeInferContext* context) {
    CpuKernel::infer_shapes(api, context);
  }

 private:
  static void refuse(const char* reason) {
    if (reason != nullptr) throw ContractError(reason);
  }

  const OrtApi* api_;
  const gpu::GpuOp& op_;
  mutable Attributes attributes_;
};

}  // namespace moe_export::ort
