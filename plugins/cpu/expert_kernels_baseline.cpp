#define MOE_EXPORT_LANES 4
#define MOE_EXPORT_MAX_TILE 2
#include "expert_kernels.inl"

namespace moe_export::cpu {
const ExpertKernels& baseline_expert_kernels() { return kKernels; }
}  // namespace moe_export::cpu
