// Kernels on the CPU: one block after the other, a fiber per GPU thread. This header is what the
// C++ that kernels are translated to sees of the machine that runs them.
//
// A shared object made from PTX exports for each kernel NAME, as PTX spells it,
//
//   extern "C" int ptx_run_NAME(const unsigned grid[3], unsigned threads, unsigned shared_bytes,
//                               unsigned seed, void* const* arguments);
//
// arguments[i] points to the bytes of parameter i, as cudaLaunchKernel takes them; shared_bytes are
// those of dynamic shared memory. It returns 0, or 1 after a fault, whose text goes to standard
// error and is had from ptx_fault(). ptx_name() is the first kernel's name and ptx_run(...) runs
// it. One launch at a time: a shared object is one GPU.
//
// `seed` draws the order of blocks, warps and lanes; odd ones have wgmma read its operands as late
// as it may, even ones at once; of 2, 6, 10.. `cp.async` lands at a drawn barrier or at its wait,
// else at its wait. Fibers change at warp and block instructions only. Shared memory
// begins as NaN, so does what an asynchronous copy is going to write, and registers begin as
// nonsense.
#pragma once
#include <cstdint>

namespace ptx {

constexpr uint32_t kWarp = 32;

/// One GPU thread.
struct Thread {
  uint32_t tid, ntid;
  uint32_t lane;
  uint32_t ctaid[3], nctaid[3];
  unsigned char* shared;
  uint32_t shared_bytes;
  /// Copies of the launch's arguments, aligned as declared.
  unsigned char* const* parameters;
};

/// Ends the launch; the message names the kernel, the line and the thread.
[[noreturn, gnu::cold, gnu::format(printf, 3, 4)]] void fault(const Thread& thread, int line,
                                                              const char* format, ...);

/// What lanes give to, and get from, one instruction of their warp.
struct WarpWords {
  static constexpr int kMost = 144;
  uint32_t in[kWarp][kMost];
  uint32_t out[kWarp][kMost];
};

/// What a warp instruction computes, once for all lanes of `mask`.
using Combine = void (*)(const Thread& thread, int line, uint32_t mask, WarpWords& words);

/// Gives `in` and waits for the other lanes of `mask`; `combine` has then made `out`.
/// It orders no memory.
void together(Thread& thread, int line, uint32_t mask, Combine combine, const uint32_t* in,
              int num_in, uint32_t* out, int num_out);

/// bar.warp.sync: waits for the lanes of `mask` and orders memory among them.
void sync_warp(Thread& thread, int line, uint32_t mask);

/// bar.sync: waits until `count` threads have come to barrier `id`, all of the block if 0.
void sync_block(Thread& thread, int line, uint32_t id, uint32_t count);

/// bar.arrive: counts as one of them and goes on.
void arrive_block(Thread& thread, int line, uint32_t id, uint32_t count);

/// bar.red: as sync_block; the number of threads whose `value` is true.
uint32_t count_block(Thread& thread, int line, uint32_t id, uint32_t count, bool value);

/// Lets others run: a thread that asks again and again for what another one has to do.
void pause(Thread& thread, int line);

/// Orders memory for ThreadSanitizer: what came before `release` is there after `acquire`.
void release(const void* object);
void acquire(const void* object);

/// One kernel of a module.
struct KernelEntry {
  const char* name;
  void (*run)(Thread&);
  uint32_t static_shared_bytes;
  uint32_t required_threads;  ///< 0 for any
  uint32_t num_parameters;
  const uint32_t* parameter_bytes;
  const uint32_t* parameter_align;
};

/// Runs every block of `grid`. 0, or 1 after a fault.
int launch(const KernelEntry& kernel, const unsigned grid[3], unsigned threads,
           unsigned shared_bytes, unsigned seed, void* const* arguments);

}  // namespace ptx
