#define MOE_EXPORT_LANES 8
#define MOE_EXPORT_MAX_TILE 3
#define MOE_EXPORT_PANEL_TILE 6
#include "expert_kernels.inl"
#include "panel_float.inl"

namespace moe_export::cpu {
const ExpertKernels& avx2_expert_kernels() { return kKernels; }
const PanelKernels* avx2_panel_kernels(WeightType type) { return float_panel_kernels(type); }
}  // namespace moe_export::cpu
