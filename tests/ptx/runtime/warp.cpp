#include "warp.h"

#include "machine.h"

namespace ptx {
namespace {

constexpr uint32_t kNonsense = 0x7fbadbad;  ///< of lanes that are not there; NaN as a float

bool has(uint32_t mask, uint32_t lane) { return mask >> lane & 1; }

/// in: value, source lane, validity. out: value, validity.
void shuffle_words(const Thread&, int, uint32_t mask, WarpWords& words) {
  for (uint32_t lane = 0; lane < kWarp; ++lane) {
    if (!has(mask, lane)) continue;
    const uint32_t source = words.in[lane][1];
    words.out[lane][0] = has(mask, source) ? words.in[source][0] : kNonsense;
  }
}

void ballot_words(const Thread&, int, uint32_t mask, WarpWords& words) {
  uint32_t ballot = 0;
  for (uint32_t lane = 0; lane < kWarp; ++lane) {
    if (has(mask, lane) && words.in[lane][0] != 0) ballot |= 1u << lane;
  }
  for (auto& out : words.out) {
    out[0] = ballot;
    out[1] = mask;
  }
}

void match_words(const Thread&, int, uint32_t mask, WarpWords& words) {
  for (uint32_t lane = 0; lane < kWarp; ++lane) {
    uint32_t same = 0;
    for (uint32_t other = 0; other < kWarp; ++other) {
      if (has(mask, other) && words.in[lane][0] == words.in[other][0] &&
          words.in[lane][1] == words.in[other][1]) {
        same |= 1u << other;
      }
    }
    words.out[lane][0] = same;
    words.out[lane][1] = mask;
  }
}

uint32_t reduce_two(Reduce mode, uint32_t a, uint32_t b) {
  const auto x = static_cast<int32_t>(a), y = static_cast<int32_t>(b);
  switch (mode) {
    case Reduce::add:
      return a + b;
    case Reduce::min:
      return x < y ? a : b;
    case Reduce::max:
      return x < y ? b : a;
    case Reduce::umin:
      return a < b ? a : b;
    case Reduce::umax:
      return a < b ? b : a;
    case Reduce::and_:
      return a & b;
    case Reduce::or_:
      return a | b;
    case Reduce::xor_:
      return a ^ b;
  }
  return 0;
}

/// in: value, mode. out: the result.
void reduce_words(const Thread& thread, int, uint32_t mask, WarpWords& words) {
  const auto mode = static_cast<Reduce>(words.in[thread.lane][1]);
  uint32_t sum = 0;
  bool is_first = true;
  for (uint32_t lane = 0; lane < kWarp; ++lane) {
    if (!has(mask, lane)) continue;
    sum = is_first ? words.in[lane][0] : reduce_two(mode, sum, words.in[lane][0]);
    is_first = false;
  }
  for (auto& out : words.out) out[0] = sum;
}

}  // namespace

Shuffled shuffle(Thread& thread, int line, Shuffle mode, uint32_t value, uint32_t by,
                 uint32_t clamp, uint32_t mask) {
  const uint32_t segment = clamp >> 8 & 31, last = clamp & 31, lane = thread.lane;
  const uint32_t most = (lane & segment) | (last & ~segment), least = lane & segment;
  by &= 31;
  uint32_t source = lane;
  bool valid = false;
  switch (mode) {
    case Shuffle::idx:
      source = least | (by & ~segment);
      valid = source <= most;
      break;
    case Shuffle::up:
      valid = static_cast<int>(lane - by) >= static_cast<int>(most);
      source = lane - by;
      break;
    case Shuffle::down:
      source = lane + by;
      valid = source <= most;
      break;
    case Shuffle::bfly:
      source = lane ^ by;
      valid = source <= most;
      break;
  }
  if (!valid) source = lane;
  const uint32_t in[2] = {value, source};
  uint32_t out[1];
  together(thread, line, mask, shuffle_words, in, 2, out, 1);
  return {out[0], valid};
}

uint32_t vote(Thread& thread, int line, Vote mode, bool value, uint32_t mask) {
  const uint32_t in[1] = {value};
  uint32_t out[2];
  together(thread, line, mask, ballot_words, in, 1, out, 2);
  switch (mode) {
    case Vote::any:
      return out[0] != 0;
    case Vote::all:
      return out[0] == out[1];
    case Vote::uni:
      return out[0] == out[1] || out[0] == 0;
    case Vote::ballot:
      return out[0];
  }
  return 0;
}

uint32_t match_any(Thread& thread, int line, uint64_t value, uint32_t mask) {
  const uint32_t in[2] = {static_cast<uint32_t>(value), static_cast<uint32_t>(value >> 32)};
  uint32_t out[1];
  together(thread, line, mask, match_words, in, 2, out, 1);
  return out[0];
}

Matched match_all(Thread& thread, int line, uint64_t value, uint32_t mask) {
  const uint32_t in[2] = {static_cast<uint32_t>(value), static_cast<uint32_t>(value >> 32)};
  uint32_t out[2];
  together(thread, line, mask, match_words, in, 2, out, 2);
  const bool all = out[0] == out[1];
  return {all ? out[1] : 0, all};
}

uint32_t reduce(Thread& thread, int line, Reduce mode, uint32_t value, uint32_t mask) {
  const uint32_t in[2] = {value, static_cast<uint32_t>(mode)};
  uint32_t out[1];
  together(thread, line, mask, reduce_words, in, 2, out, 1);
  return out[0];
}

}  // namespace ptx
