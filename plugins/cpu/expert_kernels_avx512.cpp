#define MOE_EXPORT_LANES 16
#define MOE_EXPORT_MAX_TILE 6
#include "expert_kernels.inl"

namespace moe_export::cpu {
const ExpertKernels& avx512_expert_kernels() { return kKernels; }
}  // namespace moe_export::cpu
