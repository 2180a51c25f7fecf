#include "panel_kernels.h"

namespace moe_export::cpu {

const PanelKernels* baseline_panel_kernels(WeightType type);
#ifdef MOE_EXPORT_X86
const PanelKernels* avx2_panel_kernels(WeightType type);
const PanelKernels* avx512_panel_kernels(WeightType type);
const PanelKernels* avx512_bf16_panel_kernels(WeightType type);
const PanelKernels* amx_panel_kernels(WeightType type);
#endif

const PanelKernels* panel_kernels(Isa isa, WeightType type) {
  const PanelKernels* found = nullptr;
#ifdef MOE_EXPORT_X86
  if (isa == Isa::kAmx) found = amx_panel_kernels(type);
  if (found == nullptr && isa >= Isa::kAvx512Bf16) found = avx512_bf16_panel_kernels(type);
  if (found == nullptr && isa >= Isa::kAvx512) return avx512_panel_kernels(type);
  if (found == nullptr && isa == Isa::kAvx2) return avx2_panel_kernels(type);
#endif
  return found != nullptr ? found : baseline_panel_kernels(type);
}

}  // namespace moe_export::cpu
