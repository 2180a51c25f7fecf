// Sorts (token, k) pairs by expert, keeping their order within one, and lists the tiles of rows
// that the matrix products take. No result depends on which block or thread is first.
#pragma once
#include <cstdint>

#include "device.h"
#include "expert_sort_call.h"

namespace moe_export::cuda {

/// The pair's expert, or -1.
inline __device__ int expert_of(const ExpertSortCall& call, int pair) {
  if (pair >= call.num_pairs) return -1;
  const int64_t id = call.is_int64 ? static_cast<const int64_t*>(call.expert_ids)[pair]
                                   : static_cast<const int32_t*>(call.expert_ids)[pair];
  // Unsigned: the difference may wrap around.
  const uint64_t local = static_cast<uint64_t>(id) - static_cast<uint64_t>(call.first_expert);
  return local < static_cast<uint64_t>(call.num_experts) ? static_cast<int>(local) : -1;
}

/// Adds up values[0 .. e] for each e, in place; all threads of the block call it.
inline __device__ void add_up(int32_t* values, int count) {
  __syncthreads();
  if (warp() == 0) {  // each lane adds up neighbours, the lanes' sums are added up by doubling
    const int share = (count + kWarp - 1) / kWarp;
    const int begin = min(lane() * share, count), end = min(begin + share, count);
    int sum = 0;
    for (int i = begin; i < end; ++i) sum += values[i];
    int before = sum;
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int other = __shfl_up_sync(kAllLanes, before, distance);
      if (lane() >= distance) before += other;
    }
    before -= sum;
    for (int i = begin; i < end; ++i) values[i] = before += values[i];
  }
  __syncthreads();
}

/// Writes the tiles of rows that end at ends[e].
/// @param ends  [E] in shared memory.
/// @param tiles [E] of shared memory to use.
inline __device__ void list_tiles(const int32_t* ends, int32_t* tiles, int num_experts,
                                  int tile_rows, int32_t* list) {
  __syncthreads();
  for (int e = threadIdx.x; e < num_experts; e += blockDim.x) {
    const int rows = ends[e] - (e == 0 ? 0 : ends[e - 1]);
    tiles[e] = (rows + tile_rows - 1) / tile_rows;
  }
  add_up(tiles, num_experts);
  for (int e = threadIdx.x; e < num_experts; e += blockDim.x) {
    int row = e == 0 ? 0 : ends[e - 1];
    for (int tile = e == 0 ? 0 : tiles[e - 1]; tile < tiles[e]; ++tile, row += tile_rows) {
      list[TileList::kFirst + 2 * tile] = e;
      list[TileList::kFirst + 2 * tile + 1] = row;
    }
  }
  if (threadIdx.x == 0) list[0] = tiles[num_experts - 1];
}

/// counts[e] = pairs of this block that go to e. @param counts [E] in shared memory.
inline __device__ void count_block(const ExpertSortCall& call, int expert, int32_t* counts) {
  for (int e = threadIdx.x; e < call.num_experts; e += blockDim.x) counts[e] = 0;
  __syncthreads();
  if (expert >= 0) atomicAdd(&counts[expert], 1);
  __syncthreads();
}

/// The pair of each thread takes the row behind those of the same expert before it in the block.
/// @param experts [kSortPairs] of shared memory to use.
/// @param first   (expert) → first row of the block's pairs of that expert.
template <class First>
inline __device__ void place_block(const ExpertSortCall& call, int pair, int expert,
                                   int32_t* experts, First&& first) {
  experts[threadIdx.x] = expert;
  __syncthreads();
  if (pair >= call.num_pairs) return;
  int row = kNowhere;
  if (expert >= 0) {
    row = first(expert);
    for (int before = 0; before < static_cast<int>(threadIdx.x); ++before) {
      row += experts[before] == expert;
    }
    call.pairs[row] = pair;
  }
  call.rows[pair] = row;
}

/// All of it, for at most kSortPairs pairs. One block of kSortPairs threads; shared memory:
/// 2 · E + kSortPairs ints.
inline __device__ void sort_few_pairs(const ExpertSortCall& call) {
  int32_t* const ends = shared_memory<int32_t>();
  int32_t* const tiles = ends + call.num_experts;
  const int pair = threadIdx.x, expert = expert_of(call, pair);
  count_block(call, expert, ends);
  add_up(ends, call.num_experts);
  for (int e = threadIdx.x; e < call.num_experts; e += blockDim.x) call.ends[e] = ends[e];
  place_block(call, pair, expert, tiles + call.num_experts,
              [&](int e) { return e == 0 ? 0 : ends[e - 1]; });
  if (call.tiles) list_tiles(ends, tiles, call.num_experts, call.tile_rows, call.tiles);
}

/// counts[c][e] = pairs of block c that go to e. C blocks of kSortPairs threads; shared memory:
/// E ints.
inline __device__ void count_pairs(const ExpertSortCall& call) {
  int32_t* const counts = shared_memory<int32_t>();
  count_block(call, expert_of(call, blockIdx.x * kSortPairs + threadIdx.x), counts);
  int32_t* const to = call.counts + static_cast<int64_t>(blockIdx.x) * call.num_experts;
  for (int e = threadIdx.x; e < call.num_experts; e += blockDim.x) to[e] = counts[e];
}

/// Turns counts into the first row of each block's pairs of each expert; writes ends and tiles. One
/// block of whole warps; shared memory: 2 · E ints.
inline __device__ void scan_counts(const ExpertSortCall& call) {
  const int experts = call.num_experts;
  const int blocks = (call.num_pairs + kSortPairs - 1) / kSortPairs;
  int32_t* const ends = shared_memory<int32_t>();
  for (int e = threadIdx.x; e < experts; e += blockDim.x) {
    int sum = 0;
    for (int c = 0; c < blocks; ++c) sum += call.counts[static_cast<int64_t>(c) * experts + e];
    ends[e] = sum;
  }
  add_up(ends, experts);
  for (int e = threadIdx.x; e < experts; e += blockDim.x) {
    call.ends[e] = ends[e];
    int row = e == 0 ? 0 : ends[e - 1];
    for (int c = 0; c < blocks; ++c) {
      int32_t& count = call.counts[static_cast<int64_t>(c) * experts + e];
      const int first = row;
      row += count;
      count = first;
    }
  }
  if (call.tiles) list_tiles(ends, ends + experts, experts, call.tile_rows, call.tiles);
}

/// Writes rows and pairs. Blocks as `count_pairs`; shared memory: kSortPairs ints.
inline __device__ void place_pairs(const ExpertSortCall& call) {
  const int pair = blockIdx.x * kSortPairs + threadIdx.x;
  const int32_t* const firsts = call.counts + static_cast<int64_t>(blockIdx.x) * call.num_experts;
  place_block(call, pair, expert_of(call, pair), shared_memory<int32_t>(),
              [&](int e) { return firsts[e]; });
}

/// Lists the tiles of sorted rows. One block of whole warps; shared memory: 2 · E ints.
inline __device__ void list_row_tiles(const TileCall& call) {
  int32_t* const ends = shared_memory<int32_t>();
  for (int e = threadIdx.x; e < call.num_experts; e += blockDim.x) {
    ends[e] = min(call.ends[e], call.num_rows);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int e = 0, end = 0; e < call.num_experts; ++e) ends[e] = end = max(end, ends[e]);
  }
  __syncthreads();
  for (int e = threadIdx.x; e < call.num_experts; e += blockDim.x) call.sane_ends[e] = ends[e];
  list_tiles(ends, ends + call.num_experts, call.num_experts, call.tile_rows, call.tiles);
}

}  // namespace moe_export::cuda
