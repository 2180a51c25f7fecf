// Vectors of MOE_EXPORT_LANES floats, in compiler extensions. For files that are compiled once per
// instruction set, with its flags: everything is in an anonymous namespace, and no standard header
// with code may be included there: an inline function compiled with such flags could be the copy
// that the linker keeps for every caller, on any CPU.
#pragma once
#include <cstdint>

namespace moe_export::cpu {
namespace {

constexpr int kLanes = MOE_EXPORT_LANES;

using Vec = float __attribute__((vector_size(kLanes * sizeof(float))));
using VecInt = int32_t __attribute__((vector_size(kLanes * sizeof(float))));
using VecUnaligned =
    float __attribute__((vector_size(kLanes * sizeof(float)), aligned(alignof(float)), may_alias));
using VecIntUnaligned =
    int32_t __attribute__((vector_size(kLanes * sizeof(float)), aligned(1), may_alias));

inline Vec load(const float* from) { return *reinterpret_cast<const VecUnaligned*>(from); }
inline void store(float* to, Vec value) { *reinterpret_cast<VecUnaligned*>(to) = value; }
/// Subtracting zero is nothing; adding it to -0 would be a sum.
inline Vec broadcast(float value) { return value - Vec{}; }

}  // namespace
}  // namespace moe_export::cpu
