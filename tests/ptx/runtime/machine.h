// The blocks, warps and fibers of a launch. Units that include this are compiled without
// instrumentation for ThreadSanitizer: what they touch is the machine's, not the kernel's.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fiber.h"
#include "thread.h"

namespace ptx {

enum class State : uint8_t { kReady, kAtWarp, kAtBlock, kDone };

struct Fiber : Flow {
  Thread thread = {};
  State state = State::kReady;
  int line = 0;               ///< where it waits
  uint32_t mask = 0;          ///< of the lanes that it waits for
  Combine combine = nullptr;  ///< what they do together
  uint32_t barrier = 0;       ///< that it waits at
  unsigned warp_syncs = 0;    ///< so far
};

struct Warp {
  uint32_t ready = 0;    ///< lanes that can run
  uint32_t waiting = 0;  ///< lanes that wait for lanes
  uint32_t live = 0;     ///< lanes that have not ended
  char order[2] = {};    ///< by turns, so that a fast lane's next sync orders nothing before it
  WarpWords words;
};

struct Barrier {
  uint32_t arrived = 0;
  uint32_t expected = 0;  ///< 0: all threads that have not ended
  uint32_t num_true = 0;
  uint32_t result = 0;
  unsigned phase = 0;
  char order[2] = {};
};

/// Draws numbers below a bound (xorshift64*).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 0x2545F4914F6CDD1Du) {}
  uint32_t below(uint32_t bound) {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<uint32_t>((state_ * 0x2545F4914F6CDD1Du) >> 33) % bound;
  }

 private:
  uint64_t state_;
};

/// Stacks and shared memory of a block, from mmap. ThreadSanitizer takes new pages for new memory:
/// what another block did with the same addresses is no race.
class BlockMemory {
 public:
  BlockMemory(unsigned threads, size_t shared_bytes);
  ~BlockMemory();
  BlockMemory(const BlockMemory&) = delete;
  BlockMemory& operator=(const BlockMemory&) = delete;

  char* stack(unsigned thread) const;
  unsigned char* shared() const;
  size_t stack_bytes() const;

 private:
  char* pages_;
  size_t bytes_;
  unsigned threads_;
};

struct Machine {
  const KernelEntry* kernel = nullptr;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Barrier barriers[16];
  Flow scheduler;
  Fiber* current = nullptr;
  uint32_t live = 0;      ///< threads of the block that have not ended
  uint64_t pauses = 0;    ///< since anything happened
  bool is_late = false;   ///< what may be read late is read when it is waited for
  bool is_drawn = false;  ///< copies land at a drawn barrier, whether or not they are waited for
  Random drawn{0};        ///< says at which
  bool has_fault = false;
  bool in_fiber = false;  ///< else the scheduler runs
  std::string fault_text;
  char order_begin = 0, order_end = 0;
};
extern Machine machine;

/// Ends a launch from within the scheduler.
struct LaunchEnd {};

/// Switches to the scheduler until somebody makes the current fiber ready.
void wait_in(State state, int line);

/// Every lane that waits goes on if all that it waits for have come.
void settle_warp(Warp& warp, Fiber& by);

/// Every thread that waits goes on if all have come.
void settle_block(Barrier& barrier);

/// What a block leaves behind is forgotten before the next one (async_copy.cpp, wgmma.cpp,
/// tensor_memory.cpp).
void forget_copies(unsigned threads);
/// A thread comes to a barrier: its copies may have landed.
void drift_copies(Thread& thread);
void forget_tensor_memory();
void forget_products(unsigned threads);
/// Columns of tensor memory that the block has not given back.
uint32_t allocated_tensor_memory();

}  // namespace ptx
