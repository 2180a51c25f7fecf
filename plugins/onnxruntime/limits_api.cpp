// What moe_export/benchmark/limits.py calls.
#include <exception>

#include "machine_limits.h"

#define MOE_EXPORT_API extern "C" __attribute__((visibility("default")))

using moe_export::cpu::Multiply;

/// Bytes per second of reading `bytes` bytes at `data` with `threads` threads; 0 if these cannot be
/// started.
MOE_EXPORT_API double moe_export_read_bandwidth(const char* data, int64_t bytes, int threads) {
  try {
    return moe_export::cpu::read_bandwidth(data, bytes, threads);
  } catch (const std::exception&) {
    return 0;
  }
}

/// Multiplications and additions per second of `threads` threads: `kind` is 0 for float32, 1 for
/// bfloat16, 2 for int8. 0 if the CPU has no such instructions, or threads cannot be started.
MOE_EXPORT_API double moe_export_multiply_rate(int kind, int threads) {
  try {
    return moe_export::cpu::multiply_rate(static_cast<Multiply>(kind), threads);
  } catch (const std::exception&) {
    return 0;
  }
}
