// Copies that are under way while their thread goes on. What they will write is spoilt when they
// begin, and written when somebody waits for them, or when the machine likes.
#pragma once
#include "thread.h"

namespace ptx {

/// cp.async: `count` bytes to shared memory, of which `num_read` are read and the others zero. They
/// land when the thread waits for their group; for every fourth seed also at a drawn barrier.
void copy_async(Thread& thread, int line, uint32_t to, uint64_t from, uint32_t count,
                uint32_t num_read);
/// cp.async.commit_group, cp.async.wait_group, cp.async.wait_all.
void commit_copies(Thread& thread);
void wait_copies(Thread& thread, uint32_t groups_left);
void wait_all_copies(Thread& thread);

/// An mbarrier's eight bytes of shared memory: what has to come before its phase ends.
void mbarrier_init(Thread& thread, int line, uint32_t at, uint32_t count);
void mbarrier_invalidate(Thread& thread, int line, uint32_t at);
/// Expects so many more bytes of transfers.
void mbarrier_expect(Thread& thread, int line, uint32_t at, uint32_t bytes);
/// Returns the phase before, the state that test_wait takes.
uint64_t mbarrier_arrive(Thread& thread, int line, uint32_t at, uint32_t count);
/// Arrives once all work that was begun before has landed.
void mbarrier_arrive_later(Thread& thread, int line, uint32_t at);
/// Whether the phase of that parity has ended. Lets others run if not.
bool mbarrier_test(Thread& thread, int line, uint32_t at, uint32_t parity);

/// What a tensor map's 128 bytes are here: a box of a row-major tensor of up to five dimensions,
/// the innermost first.
struct alignas(64) TensorMap {
  static constexpr int64_t kTag = 0x70616d20726f736e;  ///< "nsor map"
  int64_t tag;
  unsigned char* data;
  int64_t row_bytes[4];  ///< from one to the next, of dimensions 1 to 4
  int32_t sizes[5];
  uint16_t box[5];
  uint8_t rank;
  uint8_t element_bytes;
  uint32_t swizzle_bytes;  ///< 0, 32, 64 or 128
  uint32_t reserved[8];
};
static_assert(sizeof(TensorMap) == 128);

/// cp.async.bulk.tensor: a box to shared memory; elements outside of the tensor are zero. `barrier`
/// is told of its bytes when they have landed.
void copy_box(Thread& thread, int line, uint32_t to, uint64_t map, int rank,
              const int32_t* coordinates, uint32_t barrier);
/// The other way; elements outside of the tensor are left out. Read when it begins.
void store_box(Thread& thread, int line, uint64_t map, int rank, const int32_t* coordinates,
               uint32_t from);

}  // namespace ptx
