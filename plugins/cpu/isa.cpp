#include "isa.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace moe_export::cpu {
namespace {

Isa best_isa() {
#ifdef MOE_EXPORT_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f")) return Isa::kAvx512;
  if (avx2) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

}  // namespace

Isa choose_isa() {
  static const Isa best = best_isa();
  const char* const wanted = std::getenv("MOE_EXPORT_ISA");
  if (wanted == nullptr) return best;
  const std::string name = wanted;
  if (name == "baseline") return Isa::kBaseline;
  if (name == "avx2") return std::min(best, Isa::kAvx2);
  if (name == "avx512") return best;
  throw std::invalid_argument("MOE_EXPORT_ISA must be baseline, avx2 or avx512; found '" + name +
                              "'");
}

}  // namespace moe_export::cpu
