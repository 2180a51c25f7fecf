#define MOE_EXPORT_LANES 8
#define MOE_EXPORT_MAX_TILE 3
#include "expert_kernels.inl"

namespace moe_export::cpu {
const ExpertKernels& avx2_expert_kernels() { return kKernels; }
}  // namespace moe_export::cpu
