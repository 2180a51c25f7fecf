#define MOE_EXPORT_LANES 16
#define MOE_EXPORT_MAX_TILE 6
#define MOE_EXPORT_PANEL_TILE 12
#include "expert_kernels.inl"
#include "panel_float.inl"

namespace moe_export::cpu {
const ExpertKernels& avx512_expert_kernels() { return kKernels; }
const PanelKernels* avx512_panel_kernels(WeightType type) { return float_panel_kernels(type); }
}  // namespace moe_export::cpu
