// Instructions that the lanes of a warp do together.
#pragma once
#include "thread.h"

namespace ptx {

enum class Shuffle { idx, up, down, bfly };
enum class Vote { any, all, uni, ballot };
enum class Reduce { add, min, max, umin, umax, and_, or_, xor_ };

struct Shuffled {
  uint32_t value;
  bool valid;  ///< whether its source was within the segment; else the value is the lane's own
};

/// shfl.sync: the value of another lane. `clamp` holds the segment's size and the last lane.
Shuffled shuffle(Thread& thread, int line, Shuffle mode, uint32_t value, uint32_t by,
                 uint32_t clamp, uint32_t mask);

/// vote.sync: 0 or 1, or for ballot the lanes whose `value` is true.
uint32_t vote(Thread& thread, int line, Vote mode, bool value, uint32_t mask);

struct Matched {
  uint32_t lanes;
  bool all;
};
/// match.any.sync: the lanes that have the same value.
uint32_t match_any(Thread& thread, int line, uint64_t value, uint32_t mask);
/// match.all.sync: `mask` if all lanes have the same value, else 0.
Matched match_all(Thread& thread, int line, uint64_t value, uint32_t mask);

/// redux.sync.
uint32_t reduce(Thread& thread, int line, Reduce mode, uint32_t value, uint32_t mask);

}  // namespace ptx
