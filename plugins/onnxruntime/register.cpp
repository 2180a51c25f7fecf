#include <stdexcept>
#include <string>

#include "custom_op.h"
#include "expert_combine_op.h"
#include "expert_dispatch_op.h"
#include "gpu_kernel.h"
#include "grouped_experts_op.h"
#include "grouped_matmul_op.h"
#include "isa.h"
#include "top_k_gating_op.h"

namespace moe_export::ort {
namespace {

/// The domain with its ops. There is one for all sessions of the process, and it is never
/// released: sessions may outlive static objects.
class Library {
 public:
  explicit Library(const OrtApi* api) : api_(api) {
    check(api, CreateCustomOpDomain(api, kDomain, &domain_));
    add_op<TopKGatingKernel>();
    add_op<GroupedExpertsKernel>();
    add_op<ExpertDispatchKernel>();
    add_op<GroupedMatMulKernel>();
    add_op<ExpertCombineKernel>();
  }

  OrtCustomOpDomain* domain() const { return domain_; }

 private:
  static constexpr auto kAnyType = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;

  /// Adds the op on the CPU, and on GPUs where their library is there. Activations in half
  /// precision are the CPU's too, which refuses them by name.
  template <class Kernel>
  void add_op() {
    if (find_gpu_library() != nullptr) {
      add_forms<GpuKernel<Kernel>>("CUDAExecutionProvider", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
    }
    add_forms<Kernel>("CPUExecutionProvider", kAnyType);
  }

  /// @param last the type of activations that are not in half precision.
  template <class Kernel>
  void add_forms(const char* provider, ONNXTensorElementDataType last) {
    if constexpr (!has_activation_output<Kernel>()) {
      add<Kernel>(provider, kAnyType);
    } else {
      add<Kernel>(provider, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16);
      add<Kernel>(provider, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16);
      add<Kernel>(provider, last);
    }
  }

  template <class Kernel>
  void add(const char* provider, ONNXTensorElementDataType activations) {
    auto* const op = new CustomOp<Kernel>(api_, provider, activations);  // the runtime keeps it
    check(api_, CustomOpDomain_Add(api_, domain_, op));
  }

  const OrtApi* api_;
  OrtCustomOpDomain* domain_ = nullptr;
};

OrtStatus* refuse_runtime(const OrtApiBase* base) {
  const std::string message = std::string("moe_export needs ONNX Runtime 1.") +
                              std::to_string(kApiVersion) + " or newer; this is " +
                              base->GetVersionString();
  return CreateStatus(base->GetApi(1), ORT_FAIL, message.c_str());
}

}  // namespace
}  // namespace moe_export::ort

#define MOE_EXPORT_API extern "C" __attribute__((visibility("default")))

/// Adds the ops of domain `moe_export` to a session; the runtime calls it by this name.
MOE_EXPORT_API OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace moe_export::ort;
  const OrtApi* const api = base->GetApi(kApiVersion);
  if (api == nullptr) return refuse_runtime(base);
  return guard(api, [&] {
    static const Library* const library = new Library(api);
    check(api, AddCustomOpDomain(api, options, library->domain()));
  });
}

/// The package's version, zero-terminated.
MOE_EXPORT_API const char* moe_export_ort_version() { return MOE_EXPORT_VERSION; }

/// What the kernels run on, by the name that MOE_EXPORT_ISA takes; null if that holds another.
MOE_EXPORT_API const char* moe_export_instruction_set() {
  try {
    return moe_export::cpu::isa_name(moe_export::cpu::choose_isa());
  } catch (const std::invalid_argument&) {
    return nullptr;
  }
}
