#pragma once
#include <cstdint>

namespace moe_export::cpu {

/// What multiplies: float32, bfloat16 into float32, or int8 into int32.
enum class Multiply { kFp32, kBf16, kInt8 };

/// Bytes per second at which `threads` threads read `bytes` bytes at `data`, each its own part in
/// four streams: one stream per thread does not keep the memory busy.
double read_bandwidth(const char* data, int64_t bytes, int threads);

/// Multiplications and additions per second that `threads` threads do in registers, with the widest
/// instructions that this CPU has; 0 if it has none of this kind, which are then done as float32.
double multiply_rate(Multiply kind, int threads);

}  // namespace moe_export::cpu
