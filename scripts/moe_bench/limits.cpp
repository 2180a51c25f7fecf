// What the machine can do, for scripts/bench_moe.py: compiled where it runs, with -march=native.
#include <sys/mman.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

using Vec = float __attribute__((vector_size(64)));
using Words = uint64_t __attribute__((vector_size(64)));
using Clock = std::chrono::steady_clock;

template <class Task>
double seconds(int threads, Task task) {
  const auto start = Clock::now();
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back([&, i] { task(i); });
  task(0);
  for (auto& thread : others) thread.join();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

volatile uint64_t sink;

}  // namespace

// `bytes` of memory in huge pages where the system has them, touched; null if there is none.
extern "C" char* allocate(int64_t bytes) {
  void* const data =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return nullptr;
  madvise(data, bytes, MADV_HUGEPAGE);
  std::memset(data, 1, bytes);
  return static_cast<char*>(data);
}

// Bytes per second at which `threads` threads read `bytes` bytes, each its own part in four
// streams: one stream per thread does not keep the memory busy.
extern "C" double read_bandwidth(const char* data, int64_t bytes, int threads) {
  constexpr int64_t kStep = 256, kStreams = 4, kAhead = 1024;
  const int64_t stream = bytes / threads / kStreams / kStep * kStep;
  const double taken = seconds(threads, [&](int thread) {
    const char* const from = data + thread * stream * kStreams;
    Words sums[4] = {};
    for (int64_t at = 0; at < stream; at += kStep) {
      for (int s = 0; s < kStreams; ++s) {
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

// float32 operations per second of multiply-adds in registers.
extern "C" double fp32_peak(int threads) {
  constexpr int kChains = 24;
  constexpr int64_t kTurns = 4000000;
  const double taken = seconds(threads, [](int) {
    Vec sums[kChains];
    for (int i = 0; i < kChains; ++i) sums[i] = Vec{} + static_cast<float>(i);
    // Sums go to 1000: none becomes so small that arithmetic with it is slow.
    const Vec factor = Vec{} + 0.999f, term = Vec{} + 1.0f;
    for (int64_t turn = 0; turn < kTurns; ++turn) {
#pragma GCC unroll 24
      for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * factor + term;
    }
    float total = 0;
    for (const Vec& sum : sums) total += sum[0];
    sink = static_cast<uint64_t>(total);
  });
  return 2.0 * 16 * kChains * kTurns * threads / taken;
}
