#include "machine.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "engine.h"

#if defined(PTX_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace ptx {

Machine machine;

namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kPage = 4096;
constexpr size_t kMostSharedBytes = 227 << 10;
constexpr uint64_t kMostPauses = 4000;  ///< of each thread, while nothing happens

void write_fault(const Thread* thread, int line, const char* text) {
  char head[256] = "";
  if (thread != nullptr) {
    std::snprintf(head, sizeof(head), " line %d: block %u,%u,%u thread %u", line, thread->ctaid[0],
                  thread->ctaid[1], thread->ctaid[2], thread->tid);
  }
  machine.fault_text = std::string("ptx ") + machine.kernel->name + head + ": " + text;
  machine.has_fault = true;
  std::fprintf(stderr, "%s\n", machine.fault_text.c_str());
}

/// Who waits where, for a block in which nobody can go on.
std::string describe_waiting() {
  std::string text = "threads wait for ever:";
  int last_line = -1, num_told = 0;
  for (const Fiber& fiber : machine.fibers) {
    if (fiber.state == State::kDone || fiber.line == last_line || num_told == 8) continue;
    char where[96];
    if (fiber.state == State::kAtWarp) {
      std::snprintf(where, sizeof(where), " thread %u at line %d for lanes %08x;", fiber.thread.tid,
                    fiber.line, fiber.mask);
    } else {
      std::snprintf(where, sizeof(where), " thread %u at line %d for barrier %u;", fiber.thread.tid,
                    fiber.line, fiber.barrier);
    }
    text += where;
    last_line = fiber.line;
    ++num_told;
  }
  text.back() = '.';
  return text;
}

void run_fiber() {
  enter_flow(machine.scheduler);
  Fiber& fiber = *machine.current;
  acquire(&machine.order_begin);
  machine.kernel->run(fiber.thread);
  release(&machine.order_end);
  Warp& warp = machine.warps[fiber.thread.tid / kWarp];
  warp.live &= ~(1u << fiber.thread.lane);
  --machine.live;
  machine.pauses = 0;
  settle_warp(warp, fiber);
  for (Barrier& barrier : machine.barriers) {
    if (barrier.expected == 0) settle_block(barrier);
  }
  wait_in(State::kDone, 0);
  std::abort();  // nobody makes it ready
}

void begin_block(const BlockMemory& memory, const uint32_t* block, const uint32_t* grid,
                 uint32_t shared_bytes, unsigned char* const* parameters) {
  const auto threads = static_cast<unsigned>(machine.fibers.size());
  unsigned char* const shared = memory.shared();
  for (uint32_t i = 0; i < shared_bytes; ++i) shared[i] = 0xff;
  for (Warp& warp : machine.warps) warp.ready = warp.waiting = warp.live = 0;
  for (Barrier& barrier : machine.barriers) barrier = {};
  machine.live = threads;
  machine.pauses = 0;
  forget_work();
  forget_copies(threads);
  forget_tensor_memory();
  forget_products(threads);
  release(&machine.order_begin);
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = machine.fibers[t];
    fiber.thread = {t,
                    threads,
                    t % kWarp,
                    {block[0], block[1], block[2]},
                    {grid[0], grid[1], grid[2]},
                    shared,
                    shared_bytes,
                    parameters};
    fiber.state = State::kReady;
    fiber.warp_syncs = 0;
    machine.warps[t / kWarp].ready |= 1u << t % kWarp;
    machine.warps[t / kWarp].live |= 1u << t % kWarp;
    begin_flow(fiber, memory.stack(t), memory.stack_bytes(), run_fiber);
  }
}

/// Runs each of a warp's lanes that can, in a drawn order, until it waits.
void run_warp(unsigned index, Random& random) {
  const uint32_t step = random.below(kWarp) | 1, first = random.below(kWarp);
  Warp& warp = machine.warps[index];
  const uint32_t ready = warp.ready;
  for (uint32_t i = 0; i < kWarp && !machine.has_fault; ++i) {
    const uint32_t lane = (first + i * step) % kWarp;
    if (!(ready >> lane & 1)) continue;
    machine.current = &machine.fibers[index * kWarp + lane];
    machine.in_fiber = true;
    switch_flow(machine.scheduler, *machine.current);
    machine.in_fiber = false;
  }
}

/// Mostly goes on with the warp that ran, so that one gets far ahead of the others.
void run_threads(Random& random) {
  const auto num_warps = static_cast<uint32_t>(machine.warps.size());
  uint32_t chosen = random.below(num_warps);
  while (machine.live > 0 && !machine.has_fault) {
    if (random.below(8) == 0) chosen = random.below(num_warps);
    if (random.below(16) == 0) land_work();
    uint32_t tried = 0;
    while (tried < num_warps && machine.warps[chosen].ready == 0) {
      chosen = (chosen + 1) % num_warps;
      ++tried;
    }
    if (tried < num_warps) {
      run_warp(chosen, random);
    } else if (!land_work()) {
      write_fault(&machine.fibers[0].thread, 0, describe_waiting().c_str());
    }
  }
}

void run_block(Random& random) {
  try {
    run_threads(random);
  } catch (const LaunchEnd&) {  // a transfer was at fault
  }
  if (!machine.has_fault && allocated_tensor_memory() > 0) {
    write_fault(&machine.fibers[0].thread, 0, "ends and has not given back its tensor memory");
  }
  for (Fiber& fiber : machine.fibers) end_flow(fiber);
}

/// The arguments, copied so that each is aligned as its parameter is declared.
class Parameters {
 public:
  Parameters(const KernelEntry& kernel, void* const* arguments) {
    for (uint32_t i = 0; i < kernel.num_parameters; ++i) {
      const size_t align = std::max<size_t>(kernel.parameter_align[i], sizeof(void*));
      const size_t bytes = (kernel.parameter_bytes[i] + align - 1) / align * align;
      auto* const to = static_cast<unsigned char*>(std::aligned_alloc(align, bytes));
      const auto* const from = static_cast<const unsigned char*>(arguments[i]);
      std::copy(from, from + kernel.parameter_bytes[i], to);
      copies_.push_back(to);
    }
  }
  ~Parameters() {
    for (unsigned char* copy : copies_) std::free(copy);
  }
  Parameters(const Parameters&) = delete;
  Parameters& operator=(const Parameters&) = delete;
  unsigned char* const* data() const { return copies_.data(); }

 private:
  std::vector<unsigned char*> copies_;
};

bool check_launch(const KernelEntry& kernel, const unsigned grid[3], unsigned threads,
                  size_t shared_bytes) {
  char text[160] = "";
  if (threads == 0 || threads > 1024 || grid[0] == 0 || grid[1] == 0 || grid[2] == 0) {
    std::snprintf(text, sizeof(text), "launched with grid %u,%u,%u of %u threads", grid[0], grid[1],
                  grid[2], threads);
  } else if (kernel.required_threads != 0 && kernel.required_threads != threads) {
    std::snprintf(text, sizeof(text), "launched with %u threads, made for %u", threads,
                  kernel.required_threads);
  } else if (shared_bytes > kMostSharedBytes) {
    std::snprintf(text, sizeof(text), "launched with %zu bytes of shared memory, there are %zu",
                  shared_bytes, kMostSharedBytes);
  }
  if (text[0] != 0) write_fault(nullptr, 0, text);
  return text[0] == 0;
}

}  // namespace

BlockMemory::BlockMemory(unsigned threads, size_t shared_bytes)
    : bytes_(threads * kStackBytes + (shared_bytes + kPage) / kPage * kPage), threads_(threads) {
  pages_ = static_cast<char*>(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (pages_ == MAP_FAILED) std::abort();
}
BlockMemory::~BlockMemory() { munmap(pages_, bytes_); }
char* BlockMemory::stack(unsigned thread) const { return pages_ + thread * kStackBytes; }
size_t BlockMemory::stack_bytes() const { return kStackBytes; }
unsigned char* BlockMemory::shared() const {
  return reinterpret_cast<unsigned char*>(pages_ + threads_ * kStackBytes);
}

void release(const void* object) {
#if defined(PTX_TSAN)
  __tsan_release(const_cast<void*>(object));
#endif
  (void)object;
}

void acquire(const void* object) {
#if defined(PTX_TSAN)
  __tsan_acquire(const_cast<void*>(object));
#endif
  (void)object;
}

void fault(const Thread& thread, int line, const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  write_fault(&thread, line, text);
  if (!machine.in_fiber) throw LaunchEnd();
  switch_flow(*machine.current, machine.scheduler);
  std::abort();  // nobody goes on after a fault
}

void wait_in(State state, int line) {
  Fiber& fiber = *machine.current;
  fiber.state = state;
  fiber.line = line;
  machine.warps[fiber.thread.tid / kWarp].ready &= ~(1u << fiber.thread.lane);
  switch_flow(fiber, machine.scheduler);
}

void pause(Thread& thread, int line) {
  if (++machine.pauses > kMostPauses * thread.ntid) {
    fault(thread, line, "waits for ever, and nobody does anything else");
  }
  switch_flow(*machine.current, machine.scheduler);
}

int launch(const KernelEntry& kernel, const unsigned grid[3], unsigned threads,
           unsigned shared_bytes, unsigned seed, void* const* arguments) {
  machine.kernel = &kernel;
  machine.has_fault = false;
  machine.fault_text.clear();
  const uint32_t all_shared = kernel.static_shared_bytes + shared_bytes;
  if (!check_launch(kernel, grid, threads, all_shared)) return 1;
  const Parameters parameters(kernel, arguments);
  machine.fibers = std::vector<Fiber>(threads);
  machine.warps = std::vector<Warp>((threads + kWarp - 1) / kWarp);
  adopt_current_flow(machine.scheduler);
  Random random(seed);
  machine.is_late = seed % 2 == 1;
  machine.is_drawn = seed % 4 == 2;
  machine.drawn = random;
  std::vector<uint32_t> blocks(size_t{grid[0]} * grid[1] * grid[2]);
  std::iota(blocks.begin(), blocks.end(), 0u);
  for (size_t i = blocks.size(); i > 1; --i) {
    std::swap(blocks[i - 1], blocks[random.below(static_cast<uint32_t>(i))]);
  }
  std::unique_ptr<BlockMemory> memory;
  for (const uint32_t block : blocks) {
#if defined(PTX_TSAN)
    memory.reset();
#endif
    if (memory == nullptr) memory = std::make_unique<BlockMemory>(threads, all_shared);
    const uint32_t index[3] = {block % grid[0], block / grid[0] % grid[1],
                               block / grid[0] / grid[1]};
    begin_block(*memory, index, grid, all_shared, parameters.data());
    run_block(random);
    if (machine.has_fault) break;
  }
  acquire(&machine.order_end);
  return machine.has_fault ? 1 : 0;
}

}  // namespace ptx

extern "C" __attribute__((visibility("default"))) const char* ptx_fault() {
  return ptx::machine.fault_text.c_str();
}
