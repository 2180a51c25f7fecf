// Where threads wait for each other: instructions of a warp, barriers of a block.
#include <algorithm>

#include "machine.h"

namespace ptx {
namespace {

Warp& warp_of(const Thread& thread) { return machine.warps[thread.tid / kWarp]; }
Fiber& fiber_of(const Thread& thread) { return machine.fibers[thread.tid]; }
Fiber& lane_of(const Fiber& fiber, uint32_t lane) {
  return machine.fibers[fiber.thread.tid / kWarp * kWarp + lane];
}

void make_ready(Fiber& fiber) {
  fiber.state = State::kReady;
  machine.warps[fiber.thread.tid / kWarp].ready |= 1u << fiber.thread.lane;
}

/// Whether all lanes that `fiber` waits for wait at the same place for the same ones.
bool is_complete(const Warp& warp, const Fiber& fiber) {
  const uint32_t mask = fiber.mask & warp.live;
  if ((warp.waiting & mask) != mask) return false;
  for (uint32_t lane = 0; lane < kWarp; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const Fiber& other = lane_of(fiber, lane);
    if (other.line != fiber.line || other.mask != fiber.mask) return false;
  }
  return true;
}

/// Does what the lanes came for; `by` runs, the others go on when it is their turn.
void complete(Warp& warp, const Fiber& fiber, const Fiber& by) {
  const uint32_t mask = fiber.mask & warp.live;
  if (fiber.combine != nullptr) fiber.combine(by.thread, fiber.line, mask, warp.words);
  warp.waiting &= ~mask;
  machine.pauses = 0;
  for (uint32_t lane = 0; lane < kWarp; ++lane) {
    if (mask >> lane & 1) make_ready(lane_of(fiber, lane));
  }
}

void meet(Thread& thread, int line, uint32_t mask, Combine combine) {
  if (!(mask >> thread.lane & 1)) fault(thread, line, "lane mask %08x is without itself", mask);
  Fiber& fiber = fiber_of(thread);
  Warp& warp = warp_of(thread);
  fiber.line = line;
  fiber.mask = mask;
  fiber.combine = combine;
  warp.waiting |= 1u << thread.lane;
  if (is_complete(warp, fiber)) {
    complete(warp, fiber, fiber);
  } else {
    wait_in(State::kAtWarp, line);
  }
}

/// A block's threads come to a barrier warp by warp: lanes at different places never do.
void check_lines(const Barrier& barrier) {
  const auto id = static_cast<uint32_t>(&barrier - machine.barriers);
  const Fiber* first = nullptr;
  for (const Fiber& fiber : machine.fibers) {
    if (fiber.state != State::kAtBlock || fiber.barrier != id) continue;
    if (first != nullptr && first->thread.tid / kWarp == fiber.thread.tid / kWarp &&
        first->line != fiber.line) {
      fault(fiber.thread, fiber.line, "comes to barrier %u while its warp does at line %d", id,
            first->line);
    }
    first = &fiber;
  }
}

void come(Thread& thread, int line, uint32_t id, uint32_t count, bool value) {
  if (id >= 16) fault(thread, line, "there is no barrier %u", id);
  if (count % kWarp != 0) fault(thread, line, "barrier of %u threads, not of warps", count);
  Barrier& barrier = machine.barriers[id];
  if (barrier.arrived > 0 && barrier.expected != count) {
    fault(thread, line, "barrier %u of %u threads, others wait at it for %u", id, count,
          barrier.expected);
  }
  barrier.expected = count;
  ++barrier.arrived;
  barrier.num_true += value;
  release(&barrier.order[barrier.phase % 2]);
}

}  // namespace

void settle_warp(Warp& warp, Fiber& by) {
  for (uint32_t lane = 0; lane < kWarp; ++lane) {
    if (!(warp.waiting >> lane & 1)) continue;
    Fiber& fiber = lane_of(by, lane);
    if (is_complete(warp, fiber)) complete(warp, fiber, by);
  }
}

void settle_block(Barrier& barrier) {
  const uint32_t expected = barrier.expected ? barrier.expected : machine.live;
  if (barrier.arrived == 0 || barrier.arrived < expected) return;
  check_lines(barrier);
  barrier.result = barrier.num_true;
  barrier.arrived = barrier.num_true = 0;
  ++barrier.phase;
  machine.pauses = 0;
  const auto id = static_cast<uint32_t>(&barrier - machine.barriers);
  for (Fiber& fiber : machine.fibers) {
    if (fiber.state == State::kAtBlock && fiber.barrier == id) make_ready(fiber);
  }
}

void together(Thread& thread, int line, uint32_t mask, Combine combine, const uint32_t* in,
              int num_in, uint32_t* out, int num_out) {
  WarpWords& words = warp_of(thread).words;
  for (int i = 0; i < num_in; ++i) words.in[thread.lane][i] = in[i];
  meet(thread, line, mask, combine);
  for (int i = 0; i < num_out; ++i) out[i] = words.out[thread.lane][i];
}

void sync_warp(Thread& thread, int line, uint32_t mask) {
  char& order = warp_of(thread).order[fiber_of(thread).warp_syncs++ % 2];
  release(&order);
  meet(thread, line, mask, nullptr);
  acquire(&order);
}

uint32_t count_block(Thread& thread, int line, uint32_t id, uint32_t count, bool value) {
  drift_copies(thread);
  come(thread, line, id, count, value);
  Barrier& barrier = machine.barriers[id];
  const unsigned phase = barrier.phase;
  Fiber& fiber = fiber_of(thread);
  fiber.barrier = id;
  fiber.line = line;
  fiber.state = State::kAtBlock;
  settle_block(barrier);
  if (barrier.phase == phase) wait_in(State::kAtBlock, line);
  acquire(&barrier.order[phase % 2]);
  return barrier.result;
}

void sync_block(Thread& thread, int line, uint32_t id, uint32_t count) {
  count_block(thread, line, id, count, false);
}

void arrive_block(Thread& thread, int line, uint32_t id, uint32_t count) {
  come(thread, line, id, count, false);
  settle_block(machine.barriers[id]);
}

}  // namespace ptx
