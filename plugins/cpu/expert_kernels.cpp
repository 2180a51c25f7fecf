#include "expert_kernels.h"

namespace moe_export::cpu {

const ExpertKernels& baseline_expert_kernels();
#ifdef MOE_EXPORT_X86
const ExpertKernels& avx2_expert_kernels();
const ExpertKernels& avx512_expert_kernels();
#endif

const ExpertKernels& expert_kernels(Isa isa) {
#ifdef MOE_EXPORT_X86
  if (isa >= Isa::kAvx512) return avx512_expert_kernels();
  if (isa == Isa::kAvx2) return avx2_expert_kernels();
#endif
  (void)isa;
  return baseline_expert_kernels();
}

}  // namespace moe_export::cpu
