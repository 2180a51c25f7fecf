// The GPU library's host functions on host memory: the CPU's float32 kernels between conversions.
// Weights have the activations' type. A call must have been prepared, and its scratch be all there.
#include "host_functions.h"

#include <algorithm>
#include <cstring>

#include "cpu/expert_combine.h"
#include "cpu/expert_dispatch.h"
#include "cpu/grouped_experts.h"
#include "cpu/grouped_matmul.h"
#include "cpu/top_k_gating.h"
#include "cuda/expert_combine.h"
#include "cuda/expert_dispatch.h"
#include "cuda/grouped_experts.h"
#include "cuda/grouped_matmul.h"
#include "cuda/top_k_gating.h"
#include "elements.h"
#include "scratch.h"

namespace moe_export {
namespace test {
HostCalls& host_calls() {
  static HostCalls calls;
  return calls;
}

}  // namespace test

namespace cuda {
namespace {

using test::from_floats;
using test::to_floats;
using test::unpack_rows;

void store(ElementType element, const std::vector<float>& values, void* to) {
  const std::vector<char> bytes = from_floats(element, values);
  if (!bytes.empty()) std::memcpy(to, bytes.data(), bytes.size());
}

std::string kernel_of(const char* op, ElementType element) {
  return std::string(op) + " " + std::string(name_of(element));
}

void prepare(const char* op, ElementType element) {
  if (!test::host_calls().can_load) throw CudaError("no kernel for this device");
  auto& prepared = test::host_calls().prepared;
  const std::string name = kernel_of(op, element);
  if (std::count(prepared.begin(), prepared.end(), name) == 0) prepared.push_back(name);
}

void require_prepared(const char* op, ElementType element) {
  const auto& prepared = test::host_calls().prepared;
  if (std::count(prepared.begin(), prepared.end(), kernel_of(op, element)) == 0) {
    throw CudaError(kernel_of(op, element) + " is not loaded");
  }
}

/// Writes all of the scratch, so that too little of it shows.
void use_workspace(void* workspace, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(workspace) % 256 != 0) throw CudaError("scratch is not aligned");
  if (bytes > 0) std::memset(workspace, 0xFF, bytes);
}

bool is_computed(WeightType type, ElementType element) {
  constexpr WeightType kTypes[] = {WeightType::kFp32, WeightType::kFp16, WeightType::kBf16};
  return type == kTypes[static_cast<size_t>(element)];
}

template <class Attributes>
Attributes row_major(const Attributes& packed) {
  Attributes attributes = packed;
  attributes.weight_layout = WeightLayout::kRowMajor;
  attributes.weight_type = WeightType::kFp32;
  return attributes;
}

int64_t up_rows(const GroupedExpertsAttributes& a) {
  return a.intermediate_size * (a.gated ? 2 : 1);
}

}  // namespace

void prepare_top_k_gating(ElementType logit_type) { prepare("TopKGating", logit_type); }

void top_k_gating(const TopKGatingAttributes& a, const TopKGatingTensors& t, Stream) {
  require_prepared("TopKGating", t.logit_type);
  const std::vector<float> logits = to_floats(t.logit_type, t.logits, t.num_tokens * t.num_experts);
  cpu::SerialPool pool;
  cpu::top_k_gating(a,
                    {t.num_tokens, t.num_experts, logits.data(), t.selection_bias, t.expert_ids,
                     t.expert_weights},
                    cpu::choose_isa(), pool);
}

std::vector<int> grouped_experts_tiles(const GroupedExpertsAttributes& a, ElementType element) {
  return is_computed(a.weight_type, element) ? test::kTiles : std::vector<int>{};
}

PackedExpertBytes packed_expert_bytes(const GroupedExpertsAttributes& a, ElementType element) {
  return {test::packed_bytes(element, up_rows(a), a.hidden_size),
          test::packed_bytes(element, a.hidden_size, a.intermediate_size)};
}

size_t grouped_experts_workspace_bytes(const GroupedExpertsAttributes& a, ElementType element,
                                       int64_t num_tokens, int64_t top_k) {
  return num_tokens * top_k * a.intermediate_size * size_bytes(element);
}

void prepare_grouped_experts(const GroupedExpertsAttributes&, ElementType element) {
  prepare("GroupedExperts", element);
}

void grouped_experts(const GroupedExpertsAttributes& a, const GroupedExpertsTensors& t,
                     int tile_rows, void* workspace, Stream) {
  require_prepared("GroupedExperts", t.element);
  test::host_calls().tile_rows = tile_rows;
  use_workspace(workspace, grouped_experts_workspace_bytes(a, t.element, t.num_tokens, t.top_k));
  const auto x = to_floats(t.element, t.x, t.num_tokens * a.hidden_size);
  const auto up = unpack_rows(t.element, t.up_weight, a.num_experts, up_rows(a), a.hidden_size);
  const auto down =
      unpack_rows(t.element, t.down_weight, a.num_experts, a.hidden_size, a.intermediate_size);
  const auto plain = row_major(a);
  const auto plan = cpu::plan_grouped_experts(plain, {t.expert_ids.data, t.expert_ids.is_int64},
                                              t.num_tokens * t.top_k, cpu::choose_isa());
  const test::Scratch scratch(cpu::grouped_experts_workspace_bytes(plain, plan));
  std::vector<float> y(x.size());
  cpu::SerialPool pool;
  cpu::grouped_experts(plain,
                       {t.num_tokens, t.top_k, x.data(), t.expert_weights, up.data(), down.data(),
                        t.up_bias, t.down_bias, y.data()},
                       plan, scratch.data(), pool);
  store(t.element, y, t.y);
}

std::vector<int> grouped_matmul_tiles(const GroupedMatMulAttributes& a, ElementType element) {
  return is_computed(a.weight_type, element) ? test::kTiles : std::vector<int>{};
}

int64_t packed_matrix_bytes(const GroupedMatMulAttributes& a, ElementType element) {
  return test::packed_bytes(element, a.out_features, a.in_features);
}

size_t grouped_matmul_workspace_bytes(const GroupedMatMulAttributes&, ElementType,
                                      int64_t num_rows) {
  return 8 * num_rows;
}

void prepare_grouped_matmul(const GroupedMatMulAttributes&, ElementType element) {
  prepare("GroupedMatMul", element);
}

void grouped_matmul(const GroupedMatMulAttributes& a, const GroupedMatMulTensors& t, int tile_rows,
                    void* workspace, Stream) {
  require_prepared("GroupedMatMul", t.element);
  test::host_calls().tile_rows = tile_rows;
  use_workspace(workspace, grouped_matmul_workspace_bytes(a, t.element, t.num_rows));
  const auto rows = to_floats(t.element, t.rows, t.num_rows * a.in_features);
  const auto weight =
      unpack_rows(t.element, t.weight, a.num_experts, a.out_features, a.in_features);
  std::vector<int32_t> ends(t.group_ends, t.group_ends + a.num_experts);
  int32_t begin = 0;
  for (int32_t& end : ends) {
    begin = end = std::clamp(end, begin, static_cast<int32_t>(t.num_rows));
  }
  const auto plain = row_major(a);
  const test::Scratch scratch(
      cpu::grouped_matmul_workspace_bytes(plain, cpu::choose_isa(), ends.back()));
  std::vector<float> y(t.num_rows * a.out_features);
  cpu::SerialPool pool;
  cpu::grouped_matmul(plain,
                      {t.num_rows, rows.data(), weight.data(), ends.data(), t.bias, y.data()},
                      cpu::choose_isa(), scratch.data(), pool);
  store(t.element, y, t.y);
}

size_t expert_dispatch_workspace_bytes(const ExpertDispatchAttributes&, int64_t num_slots) {
  return 256 * num_slots;
}

void prepare_expert_dispatch(const ExpertDispatchAttributes&, ElementType element) {
  prepare("ExpertDispatch", element);
}

void expert_dispatch(const ExpertDispatchAttributes& a, const ExpertDispatchTensors& t,
                     void* workspace, Stream) {
  require_prepared("ExpertDispatch", t.element);
  const int64_t num_slots = t.num_tokens * t.top_k;
  use_workspace(workspace, expert_dispatch_workspace_bytes(a, num_slots));
  const auto x = to_floats(t.element, t.x, t.num_tokens * a.hidden_size);
  std::vector<float> rows(num_slots * a.hidden_size);
  cpu::SerialPool pool;
  cpu::expert_dispatch(a,
                       {t.num_tokens,
                        t.top_k,
                        x.data(),
                        {t.expert_ids.data, t.expert_ids.is_int64},
                        rows.data(),
                        t.row_map,
                        t.group_ends,
                        t.row_experts},
                       pool);
  store(t.element, rows, t.rows);
}

void prepare_expert_combine(ElementType element) { prepare("ExpertCombine", element); }

void expert_combine(const ExpertCombineAttributes& a, const ExpertCombineTensors& t, Stream) {
  require_prepared("ExpertCombine", t.element);
  const auto rows = to_floats(t.element, t.rows, t.num_rows * a.hidden_size);
  std::vector<int32_t> row_map(t.row_map, t.row_map + t.num_tokens * t.top_k);
  for (int32_t& row : row_map) row = 0 <= row && row < t.num_rows ? row : -1;
  std::vector<float> y(t.num_tokens * a.hidden_size);
  cpu::SerialPool pool;
  cpu::expert_combine(
      a, {t.num_tokens, t.top_k, rows.data(), row_map.data(), t.expert_weights, y.data()},
      cpu::choose_isa(), pool);
  store(t.element, y, t.y);
}

}  // namespace cuda
}  // namespace moe_export
