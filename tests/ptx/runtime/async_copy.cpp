#include "async_copy.h"

#include <vector>

#include "engine.h"
#include "kernel_memory.h"
#include "machine.h"
#include "memory.h"

namespace ptx {
namespace {

constexpr uint32_t kMostBytes = 16;

struct Copy {
  uint32_t to, count;
  unsigned char bytes[kMostBytes];
  unsigned group;
};

/// One thread's copies that have not landed, oldest first, and its groups. Fibers allocate no
/// memory: ThreadSanitizer would take who frees it for who races.
class CopyQueue {
 public:
  void clear() { begin_ = end_ = num_groups = 0; }
  bool is_full() const { return end_ - begin_ == kMost; }
  bool is_empty() const { return begin_ == end_; }
  void push(const Copy& copy) { copies_[end_++ % kMost] = copy; }
  const Copy& front() const { return copies_[begin_ % kMost]; }
  void pop() { ++begin_; }

  unsigned num_groups = 0;  ///< committed so far

 private:
  static constexpr unsigned kMost = 512;
  std::vector<Copy> copies_ = std::vector<Copy>(kMost);
  unsigned begin_ = 0, end_ = 0;
};
std::vector<CopyQueue> queues;

void land_copies(Thread& thread, unsigned groups) {
  CopyQueue& queue = queues[thread.tid];
  while (!queue.is_empty() && queue.front().group < groups) {
    const Copy copy = queue.front();
    queue.pop();
    write_memory(copy.bytes, thread.shared + copy.to, copy.count);
  }
}

// mbarriers

struct Mbarrier {
  static constexpr uint32_t kTag = 0x5a, kMostArrivals = 0xfff;
  uint32_t phase : 1;
  uint32_t left : 12;  ///< arrivals
  uint32_t count : 12;
  uint32_t tag : 7;  ///< what is made an mbarrier, and nothing else, has it
  int32_t bytes;     ///< of transfers that are expected
};
static_assert(sizeof(Mbarrier) == 8);

Mbarrier& mbarrier_at(const Thread& thread, int line, uint32_t at) {
  auto* const barrier = reinterpret_cast<Mbarrier*>(at_shared(thread, line, at, 8));
  return *barrier;
}
Mbarrier& valid_mbarrier_at(const Thread& thread, int line, uint32_t at) {
  Mbarrier& barrier = mbarrier_at(thread, line, at);
  if (barrier.tag != Mbarrier::kTag) {
    fault(thread, line, "no mbarrier is at shared offset %u", at);
  }
  return barrier;
}
void settle(Mbarrier& barrier) {
  if (barrier.left != 0 || barrier.bytes != 0) return;
  barrier.phase ^= 1;
  barrier.left = barrier.count;
  machine.pauses = 0;
}

// Boxes of tensors

uint32_t swizzled(uint32_t offset, uint32_t swizzle_bytes) {
  return swizzle_bytes == 0 ? offset : offset ^ (offset >> 3 & (swizzle_bytes - 16));
}

const TensorMap& map_at(const Thread& thread, int line, uint64_t address, int rank) {
  const auto& map = *reinterpret_cast<const TensorMap*>(at_address(thread, line, address, 64));
  if (map.tag != TensorMap::kTag) fault(thread, line, "there is no tensor map");
  if (map.rank != rank) fault(thread, line, "tensor map of rank %d, not %d", map.rank, rank);
  return map;
}

uint32_t box_bytes(const TensorMap& map) {
  uint32_t bytes = map.element_bytes;
  for (int i = 0; i < map.rank; ++i) bytes *= map.box[i];
  return bytes;
}

/// Calls visit(address or null outside of the tensor, position in the box) for every element.
template <class Visit>
void for_each_element(const TensorMap& map, const int32_t* coordinates, Visit visit) {
  const uint32_t count = box_bytes(map) / map.element_bytes;
  for (uint32_t position = 0; position < count; ++position) {
    uint32_t rest = position;
    bool inside = true;
    int64_t at = 0;
    for (int i = 0; i < map.rank; ++i) {
      const int64_t index = coordinates[i] + static_cast<int64_t>(rest % map.box[i]);
      rest /= map.box[i];
      inside = inside && index >= 0 && index < map.sizes[i];
      at += index * (i == 0 ? map.element_bytes : map.row_bytes[i - 1]);
    }
    visit(inside ? map.data + at : nullptr, position * map.element_bytes);
  }
}

}  // namespace

void forget_copies(unsigned threads) {
  if (queues.size() < threads) queues.resize(threads);
  for (CopyQueue& queue : queues) queue.clear();
}

void drift_copies(Thread& thread) {
  if (!machine.is_drawn || machine.drawn.below(4) != 0) return;
  land_copies(thread, queues[thread.tid].num_groups + 1);
}

void copy_async(Thread& thread, int line, uint32_t to, uint64_t from, uint32_t count,
                uint32_t num_read) {
  if (num_read > count) fault(thread, line, "copies %u bytes and reads %u", count, num_read);
  unsigned char* const target = at_shared(thread, line, to, count);
  alignas(16) unsigned char bytes[kMostBytes] = {};
  if (num_read > 0) read_memory(at_address(thread, line, from, count), bytes, num_read);
  spoil_memory(target, count);
  CopyQueue& queue = queues[thread.tid];
  Copy copy = {to, count, {}, queue.num_groups};
  for (uint32_t i = 0; i < count; ++i) copy.bytes[i] = bytes[i];
  if (queue.is_full()) fault(thread, line, "too many copies that nobody waits for");
  queue.push(copy);
}

void commit_copies(Thread& thread) { ++queues[thread.tid].num_groups; }

void wait_copies(Thread& thread, uint32_t groups_left) {
  const unsigned groups = queues[thread.tid].num_groups;
  if (groups > groups_left) land_copies(thread, groups - groups_left);
}

void wait_all_copies(Thread& thread) {
  commit_copies(thread);
  wait_copies(thread, 0);
}

void mbarrier_init(Thread& thread, int line, uint32_t at, uint32_t count) {
  if (count == 0 || count > Mbarrier::kMostArrivals) {
    fault(thread, line, "mbarrier of %u arrivals", count);
  }
  Mbarrier& barrier = mbarrier_at(thread, line, at);
  barrier = {0, count, count, Mbarrier::kTag, 0};
  release(&barrier);
}

void mbarrier_invalidate(Thread& thread, int line, uint32_t at) {
  valid_mbarrier_at(thread, line, at).tag = 0;
}

void mbarrier_expect(Thread& thread, int line, uint32_t at, uint32_t bytes) {
  valid_mbarrier_at(thread, line, at).bytes += static_cast<int32_t>(bytes);
}

uint64_t mbarrier_arrive(Thread& thread, int line, uint32_t at, uint32_t count) {
  Mbarrier& barrier = valid_mbarrier_at(thread, line, at);
  if (count > barrier.left) fault(thread, line, "more arrivals than the mbarrier's phase has");
  const uint64_t phase = barrier.phase;
  release(&barrier);
  barrier.left -= count;
  settle(barrier);
  return phase;
}

bool mbarrier_test(Thread& thread, int line, uint32_t at, uint32_t parity) {
  Mbarrier& barrier = valid_mbarrier_at(thread, line, at);
  if (barrier.phase != (parity & 1)) {
    acquire(&barrier);
    return true;
  }
  pause(thread, line);
  return false;
}

void copy_box(Thread& thread, int line, uint32_t to, uint64_t address, int rank,
              const int32_t* coordinates, uint32_t barrier) {
  const TensorMap& map = map_at(thread, line, address, rank);
  valid_mbarrier_at(thread, line, barrier);
  const uint32_t num_bytes = box_bytes(map);
  const uint32_t align = map.swizzle_bytes == 0 ? 128 : map.swizzle_bytes * 8;
  if (to % align != 0) fault(thread, line, "box at shared offset %u, not aligned to %u", to, align);
  at_shared(thread, line, to, 16);
  at_shared(thread, line, to + num_bytes - 16, 16);
  spoil_memory(thread.shared + to, num_bytes);
  std::vector<unsigned char> box(num_bytes);
  for_each_element(map, coordinates, [&](const unsigned char* element, uint32_t position) {
    unsigned char bytes[8] = {};
    if (element != nullptr) read_memory(element, bytes, map.element_bytes);
    for (uint32_t i = 0; i < map.element_bytes; ++i) box[position + i] = bytes[i];
  });
  begin_work(
      [box = std::move(box), to, barrier, swizzle = map.swizzle_bytes, shared = thread.shared] {
        for (uint32_t i = 0; i < box.size(); i += 16) {
          unsigned char bytes[16];
          for (uint32_t j = 0; j < 16; ++j) bytes[j] = box[i + j];
          write_memory(bytes, shared + swizzled(to + i, swizzle), 16);
        }
        auto& told = *reinterpret_cast<Mbarrier*>(shared + barrier);
        release(&told);
        told.bytes -= static_cast<int32_t>(box.size());
        settle(told);
      });
}

void mbarrier_arrive_later(Thread& thread, int line, uint32_t at) {
  valid_mbarrier_at(thread, line, at);
  begin_work([barrier = reinterpret_cast<Mbarrier*>(thread.shared + at)] {
    release(barrier);
    if (barrier->left > 0) --barrier->left;
    settle(*barrier);
  });
}

void store_box(Thread& thread, int line, uint64_t address, int rank, const int32_t* coordinates,
               uint32_t from) {
  const TensorMap& map = map_at(thread, line, address, rank);
  at_shared(thread, line, from, 16);
  at_shared(thread, line, from + box_bytes(map) - 16, 16);
  for_each_element(map, coordinates, [&](unsigned char* element, uint32_t position) {
    if (element == nullptr) return;
    unsigned char bytes[8];
    const uint32_t offset = swizzled(from + position, map.swizzle_bytes);
    read_memory(thread.shared + offset, bytes, map.element_bytes);
    write_memory(bytes, element, map.element_bytes);
  });
}

}  // namespace ptx
