#include "machine_limits.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#ifdef MOE_EXPORT_X86
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace moe_export::cpu {
namespace {

using Clock = std::chrono::steady_clock;
// Unaligned: the caller's bytes lie where they lie.
using Words = uint64_t __attribute__((vector_size(64), aligned(1), may_alias));

// What was computed goes here, or the compiler would leave it out.
std::atomic<uint64_t> sink;

/// Seconds from the moment that all threads are there until the last has done `task(thread)`.
template <class Task>
double seconds(int threads, const Task& task) {
  std::atomic<int> waiting{threads};
  const auto run = [&](int thread) {
    waiting.fetch_sub(1);
    while (waiting.load() > 0) std::this_thread::yield();
    task(thread);
  };
  std::vector<std::thread> others;
  others.reserve(threads);
  try {
    for (int i = 1; i < threads; ++i) others.emplace_back(run, i);
  } catch (...) {
    waiting.store(0);
    for (auto& thread : others) thread.join();
    throw;
  }
  waiting.fetch_sub(1);
  while (waiting.load() > 0) std::this_thread::yield();
  const auto start = Clock::now();
  task(0);
  for (auto& thread : others) thread.join();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Some multiply-adds: does `turns` turns and returns anything that depends on them.
using Turns = uint64_t (*)(int64_t turns);

/// Instructions of a kind: what does a turn, and how many operations that is.
struct Rate {
  Turns run = nullptr;
  double operations = 0;
};

// More chains than one instruction's latency times the instructions per cycle.
constexpr int kChains = 16;

uint64_t portable_turns(int64_t turns) {
  using Vec = float __attribute__((vector_size(16)));
  Vec sums[kChains / 2];
  for (int i = 0; i < kChains / 2; ++i) sums[i] = Vec{} + static_cast<float>(i);
  // Sums go to 1000: none becomes so small that arithmetic with it is slow.
  const Vec factor = Vec{} + 0.999f, term = Vec{} + 1.0f;
  for (int64_t turn = 0; turn < turns; ++turn) {
#pragma GCC unroll 8
    for (int i = 0; i < kChains / 2; ++i) sums[i] = sums[i] * factor + term;
  }
  float total = 0;
  for (const Vec& sum : sums) total += sum[0];
  return static_cast<uint64_t>(total);
}

#ifdef MOE_EXPORT_X86
// Each body is one instruction on kChains registers, in the width that its instruction set has.
#define MOE_EXPORT_TURNS(name, isa, Register, zero, set, step, store)            \
  __attribute__((target(isa))) uint64_t name(int64_t turns) {                    \
    Register sums[kChains];                                                      \
    for (int i = 0; i < kChains; ++i) sums[i] = zero();                          \
    const auto a = set;                                                          \
    for (int64_t turn = 0; turn < turns; ++turn) {                               \
      _Pragma("GCC unroll 16") for (int i = 0; i < kChains; ++i) sums[i] = step; \
    }                                                                            \
    alignas(64) unsigned char bytes[64] = {};                                    \
    for (int i = 1; i < kChains; ++i) sums[0] = store(sums[0], sums[i]);         \
    __builtin_memcpy(bytes, &sums[0], sizeof(Register));                         \
    return bytes[0] + bytes[3];                                                  \
  }

MOE_EXPORT_TURNS(fma_avx2, "avx2,fma", __m256, _mm256_setzero_ps, _mm256_set1_ps(0.999f),
                 _mm256_fmadd_ps(sums[i], a, a), _mm256_add_ps)
MOE_EXPORT_TURNS(fma_avx512, "avx512f", __m512, _mm512_setzero_ps, _mm512_set1_ps(0.999f),
                 _mm512_fmadd_ps(sums[i], a, a), _mm512_add_ps)
MOE_EXPORT_TURNS(dot_bf16, "avx512f,avx512bf16", __m512, _mm512_setzero_ps,
                 (__m512bh)_mm512_set1_epi16(0x3f80), _mm512_dpbf16_ps(sums[i], a, a),
                 _mm512_add_ps)
MOE_EXPORT_TURNS(dot_int8, "avx512f,avx512vnni", __m512i, _mm512_setzero_si512, _mm512_set1_epi8(1),
                 _mm512_dpbusd_epi32(sums[i], a, a), _mm512_add_epi32)
#undef MOE_EXPORT_TURNS

#if defined(__GNUC__) && (__GNUC__ >= 11 || defined(__clang__))
#define MOE_EXPORT_AMX
/// What `_tile_loadconfig` reads: eight tiles of 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t columns[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

/// Whether the CPU has tiles of `kind`, and the system lets this process use them.
bool has_tiles(Multiply kind) {
  unsigned a = 0, b = 0, c = 0, d = 0;
  const unsigned wanted = 1u << 24 | 1u << (kind == Multiply::kBf16 ? 22 : 25);
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & wanted) != wanted) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

#define MOE_EXPORT_TILES(name, isa, product)                              \
  __attribute__((target("amx-tile," isa))) uint64_t name(int64_t turns) { \
    const TileConfig config;                                              \
    alignas(64) int32_t out[256];                                         \
    _tile_loadconfig(&config);                                            \
    _tile_zero(0);                                                        \
    _tile_zero(1);                                                        \
    _tile_zero(2);                                                        \
    _tile_zero(3);                                                        \
    _tile_zero(4);                                                        \
    _tile_zero(5);                                                        \
    for (int64_t turn = 0; turn < turns; ++turn) {                        \
      product(0, 4, 5);                                                   \
      product(1, 4, 5);                                                   \
      product(2, 4, 5);                                                   \
      product(3, 4, 5);                                                   \
    }                                                                     \
    _tile_stored(0, out, 64);                                             \
    _tile_release();                                                      \
    return static_cast<uint64_t>(out[0]);                                 \
  }

MOE_EXPORT_TILES(tiles_bf16, "amx-bf16", _tile_dpbf16ps)
MOE_EXPORT_TILES(tiles_int8, "amx-int8", _tile_dpbssd)
#undef MOE_EXPORT_TILES
#endif

Rate find_rate(Multiply kind) {
  __builtin_cpu_init();
  constexpr double kTwo = 2 * kChains;
  if (kind == Multiply::kFp32) {
    if (__builtin_cpu_supports("avx512f")) return {fma_avx512, kTwo * 16};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      return {fma_avx2, kTwo * 8};
    }
    return {portable_turns, kTwo / 2 * 4};
  }
  const bool bf16 = kind == Multiply::kBf16;
#ifdef MOE_EXPORT_AMX
  // Four products of 16 x 16 sums, of 64 bytes each.
  if (has_tiles(kind)) {
    return bf16 ? Rate{tiles_bf16, 2.0 * 4 * 256 * 32} : Rate{tiles_int8, 2.0 * 4 * 256 * 64};
  }
#endif
  if (bf16 && __builtin_cpu_supports("avx512bf16")) return {dot_bf16, kTwo * 32};
  if (!bf16 && __builtin_cpu_supports("avx512vnni")) return {dot_int8, kTwo * 64};
  return {};
}
#else
Rate find_rate(Multiply kind) {
  if (kind != Multiply::kFp32) return {};
  return {portable_turns, 2.0 * kChains / 2 * 4};
}
#endif

}  // namespace

double read_bandwidth(const char* data, int64_t bytes, int threads) {
  constexpr int64_t kStep = 256, kStreams = 4, kAhead = 1024;
  const int64_t stream = bytes / threads / kStreams / kStep * kStep;
  const double taken = seconds(threads, [&](int thread) {
    const char* const from = data + thread * stream * kStreams;
    Words sums[4] = {};
    for (int64_t at = 0; at < stream; at += kStep) {
      for (int64_t s = 0; s < kStreams; ++s) {
        const char* const place = from + s * stream + at;
        for (int i = 0; i < 4; ++i) {
          __builtin_prefetch(place + kAhead + 64 * i);
          sums[i] ^= *reinterpret_cast<const Words*>(place + 64 * i);
        }
      }
    }
    const Words sum = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
    sink = sum[0] ^ sum[1] ^ sum[2] ^ sum[3] ^ sum[4] ^ sum[5] ^ sum[6] ^ sum[7];
  });
  return static_cast<double>(stream) * kStreams * threads / taken;
}

double multiply_rate(Multiply kind, int threads) {
  constexpr int64_t kTurns = 2000;
  constexpr auto kEnough = std::chrono::milliseconds(20);
  static const Rate rates[] = {find_rate(Multiply::kFp32), find_rate(Multiply::kBf16),
                               find_rate(Multiply::kInt8)};
  const Rate& rate = rates[static_cast<int>(kind)];
  if (rate.run == nullptr) return 0;
  std::atomic<int64_t> done{0};
  const double taken = seconds(threads, [&](int) {
    const auto end = Clock::now() + kEnough;
    int64_t own = 0;
    uint64_t result = 0;
    for (; Clock::now() < end; own += kTurns) result += rate.run(kTurns);
    sink = result;
    done.fetch_add(own);
  });
  return rate.operations * static_cast<double>(done.load()) / taken;
}

}  // namespace moe_export::cpu
