#pragma once
#include <cstddef>

namespace moe_export::cpu {

/// Instruction sets that the kernels are built for, each containing those before it. AVX-512 comes
/// in two steps: its foundation, and with dot products of bfloat16 (BF16) and int8 (VNNI).
enum class Isa { kBaseline, kAvx2, kAvx512, kAvx512Bf16, kAmx };

/// What `MOE_EXPORT_ISA` calls it.
const char* isa_name(Isa isa);

/// The instruction set to run: the CPU's best, or less if `MOE_EXPORT_ISA` asks for less.
/// @throws std::invalid_argument `MOE_EXPORT_ISA` is none of baseline, avx2, avx512, avx512_bf16,
/// amx.
Isa choose_isa();

/// Bytes that the kernels' scratch is aligned to: a cache line, and the widest vector.
inline constexpr size_t kWorkspaceAlignment = 64;

}  // namespace moe_export::cpu
