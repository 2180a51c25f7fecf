#include "row_launches.h"

#include <string>

namespace moe_export::cuda {
namespace {

constexpr uint32_t kThreads = 256;
constexpr uint32_t kScanThreads = 1024;

uint32_t blocks(int64_t items, int64_t threads) {
  return static_cast<uint32_t>((items + threads - 1) / threads);
}

template <class Call>
void launch_call(const std::string& name, Grid grid, uint32_t threads, size_t shared_bytes,
                 Call call, Stream stream) {
  void* const arguments[] = {&call};
  launch(find_kernel(name), grid, threads, static_cast<uint32_t>(shared_bytes), arguments, stream);
}

std::string copy_name(ElementType element) { return "copy_rows_" + std::string(name_of(element)); }

std::string combine_name(ElementType element, bool sums) {
  const bool mixed = sums && element != ElementType::kFp32;
  return (mixed ? "combine_experts_" : "combine_rows_") + std::string(name_of(element));
}

void check_experts(int64_t num_experts) {
  if (num_experts <= kMostExperts) return;
  throw CudaError("the kernels sort for at most " + std::to_string(kMostExperts) +
                  " experts; found num_experts = " + std::to_string(num_experts));
}

}  // namespace

void prepare_sort(int64_t num_experts) {
  check_experts(num_experts);
  for (const char* name : {"sort_few_pairs", "count_pairs", "scan_counts", "place_pairs"}) {
    find_kernel(name);
  }
}

int64_t sort_counts(int64_t num_pairs, int64_t num_experts) {
  return num_pairs <= kSortPairs ? 0 : blocks(num_pairs, kSortPairs) * num_experts;
}

void sort_pairs(const ExpertSortCall& call, Stream stream) {
  const size_t expert_bytes = sizeof(int32_t) * call.num_experts;
  const size_t pair_bytes = sizeof(int32_t) * kSortPairs;
  if (call.num_pairs <= kSortPairs) {
    launch_call("sort_few_pairs", {1}, kSortPairs, 2 * expert_bytes + pair_bytes, call, stream);
    return;
  }
  const Grid grid = {blocks(call.num_pairs, kSortPairs)};
  launch_call("count_pairs", grid, kSortPairs, expert_bytes, call, stream);
  launch_call("scan_counts", {1}, kScanThreads, 2 * expert_bytes, call, stream);
  launch_call("place_pairs", grid, kSortPairs, pair_bytes, call, stream);
}

void list_row_tiles(const TileCall& call, Stream stream) {
  launch_call("list_row_tiles", {1}, kScanThreads, 2 * sizeof(int32_t) * call.num_experts, call,
              stream);
}

void name_row_experts(const RowExpertsCall& call, Stream stream) {
  launch_call("name_row_experts", {blocks(call.num_rows, kThreads)}, kThreads, 0, call, stream);
}

void copy_rows(const CopyRowsCall& call, ElementType element, Stream stream) {
  launch_call(copy_name(element),
              {static_cast<uint32_t>(call.num_rows), blocks(call.to_width, kThreads)}, kThreads, 0,
              call, stream);
}

void combine_rows(const ExpertCombineCall& call, ElementType element, bool sums, Stream stream) {
  launch_call(combine_name(element, sums),
              {static_cast<uint32_t>(call.num_tokens), blocks(call.width, kThreads)}, kThreads, 0,
              call, stream);
}

void prepare_tiles(int64_t num_experts) {
  check_experts(num_experts);
  find_kernel("list_row_tiles");
}
void prepare_row_experts() { find_kernel("name_row_experts"); }
void prepare_copy(ElementType element) { find_kernel(copy_name(element)); }
void prepare_combine(ElementType element, bool sums) { find_kernel(combine_name(element, sums)); }

}  // namespace moe_export::cuda
