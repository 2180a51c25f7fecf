// Launches of the kernels that sort, copy and add rows: what several ops need.
#pragma once
#include <cstddef>
#include <cstdint>

#include "element_type.h"
#include "expert_sort_call.h"
#include "launch.h"
#include "row_calls.h"

namespace moe_export::cuda {

/// More experts than that do not fit the kernels' shared memory.
constexpr int64_t kMostExperts = 4096;

/// Loads what sorts pairs. @throws CudaError there are too many experts.
void prepare_sort(int64_t num_experts);

/// int32s of `counts` that `sort_pairs` needs.
int64_t sort_counts(int64_t num_pairs, int64_t num_experts);

/// Sorts pairs by expert; at least one of them.
void sort_pairs(const ExpertSortCall& call, Stream stream);

void list_row_tiles(const TileCall& call, Stream stream);
void name_row_experts(const RowExpertsCall& call, Stream stream);
void copy_rows(const CopyRowsCall& call, ElementType element, Stream stream);

/// @param sums rows are float32 whatever `element`, the type of y, is.
void combine_rows(const ExpertCombineCall& call, ElementType element, bool sums, Stream stream);

/// Loads what the functions above launch.
void prepare_tiles(int64_t num_experts);
void prepare_row_experts();
void prepare_copy(ElementType element);
void prepare_combine(ElementType element, bool sums);

/// Hands out parts of a workspace, one behind the other; with none it only adds them up.
class Workspace {
 public:
  static constexpr size_t kAlignment = 256;

  explicit Workspace(void* memory) : memory_(static_cast<unsigned char*>(memory)) {}

  template <class Value>
  Value* take(int64_t count) {
    return static_cast<Value*>(take_bytes(static_cast<size_t>(count) * sizeof(Value)));
  }
  void* take_bytes(size_t bytes) {
    void* const part = memory_ ? memory_ + used_ : nullptr;
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return part;
  }
  size_t used_bytes() const { return used_; }

 private:
  unsigned char* memory_;
  size_t used_ = 0;
};

}  // namespace moe_export::cuda
