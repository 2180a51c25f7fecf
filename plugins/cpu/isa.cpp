#include "isa.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>

#if defined(MOE_EXPORT_X86) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace moe_export::cpu {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16", "amx"};

#ifdef MOE_EXPORT_X86
/// Asks the system for the tile registers, which it saves only for processes that asked.
bool request_tiles() {
#ifdef __linux__
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool has_dot_products() {
  return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("avx512bf16");
}

bool has_tiles() {
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         __builtin_cpu_supports("amx-int8") && request_tiles();
}
#endif

Isa best_isa() {
#ifdef MOE_EXPORT_X86
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::kBaseline;
  if (!__builtin_cpu_supports("avx512f")) return Isa::kAvx2;
  if (!has_dot_products()) return Isa::kAvx512;
  return has_tiles() ? Isa::kAmx : Isa::kAvx512Bf16;
#else
  return Isa::kBaseline;
#endif
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

Isa choose_isa() {
  static const Isa best = best_isa();
  const char* const wanted = std::getenv("MOE_EXPORT_ISA");
  if (wanted == nullptr) return best;
  const auto found = std::find(std::begin(kNames), std::end(kNames), std::string(wanted));
  if (found == std::end(kNames)) {
    throw std::invalid_argument(
        "MOE_EXPORT_ISA must be baseline, avx2, avx512, avx512_bf16 or amx; found '" +
        std::string(wanted) + "'");
  }
  return std::min(best, static_cast<Isa>(found - std::begin(kNames)));
}

}  // namespace moe_export::cpu
