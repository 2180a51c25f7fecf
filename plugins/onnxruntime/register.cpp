#include <initializer_list>
#include <stdexcept>
#include <string>

#include "custom_op.h"
#include "expert_combine_op.h"
#include "expert_dispatch_op.h"
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
  explicit Library(const OrtApi* api)
      : top_k_gating_(api),
        grouped_experts_(api),
        expert_dispatch_(api),
        grouped_matmul_(api),
        expert_combine_(api) {
    check(api, CreateCustomOpDomain(api, kDomain, &domain_));
    for (const OrtCustomOp* op : std::initializer_list<const OrtCustomOp*>{
             &top_k_gating_, &grouped_experts_, &expert_dispatch_, &grouped_matmul_,
             &expert_combine_}) {
      check(api, CustomOpDomain_Add(api, domain_, op));
    }
  }

  OrtCustomOpDomain* domain() const { return domain_; }

 private:
  CustomOp<TopKGatingKernel> top_k_gating_;
  CustomOp<GroupedExpertsKernel> grouped_experts_;
  CustomOp<ExpertDispatchKernel> expert_dispatch_;
  CustomOp<GroupedMatMulKernel> grouped_matmul_;
  CustomOp<ExpertCombineKernel> expert_combine_;
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
