#pragma once
#include "cuda/grouped_experts.h"
#include "op.h"

namespace moe_export::gpu {

/// `GroupedExperts` by the host functions of plugins/cuda.
struct GroupedExpertsOp : BasicOp<GroupedExpertsAttributes> {
  static constexpr TensorKind kOutputs[] = {TensorKind::kElement};

  static std::vector<TensorKind> inputs(const Attributes& a) {
    std::vector<TensorKind> kinds = {TensorKind::kElement, TensorKind::kIds, TensorKind::kFloat,
                                     TensorKind::kPacked, TensorKind::kPacked};
    if (a.has_bias) kinds.insert(kinds.end(), {TensorKind::kFloat, TensorKind::kFloat});
    return kinds;
  }

  static std::vector<int> tiles(const Attributes& a, ElementType element) {
    return cuda::grouped_experts_tiles(a, element);
  }

  static void check_computed(const Attributes& a) {
    check_computed_weights<GroupedExpertsOp>(a, "experts_c4");
  }

  static void check_element(const Attributes& a, ElementType element) {
    check_element_with_weights<GroupedExpertsOp>(a, element, "experts_c4", "x");
  }

  static void check_shapes(const Attributes& a, const std::vector<Shape>& inputs,
                           std::optional<ElementType> element) {
    cuda::PackedExpertBytes bytes = {kUnknownSize, kUnknownSize};
    if (element) bytes = cuda::packed_expert_bytes(a, *element);
    moe_export::check_shapes(a, inputs, bytes.up, bytes.down);
    check_slots("experts_c2", "expert_ids", inputs[1]);
  }

  static size_t workspace_bytes(const Attributes& a, ElementType element,
                                const std::vector<Shape>& inputs) {
    return cuda::grouped_experts_workspace_bytes(a, element, inputs[1][0], inputs[1][1]);
  }

  static void prepare(const Attributes& a, ElementType element) {
    cuda::prepare_grouped_experts(a, element);
  }

  static void run(const Attributes& a, const Call& call, int tile_rows) {
    cuda::grouped_experts(a,
                          {call.size(1, 0), call.size(1, 1), call.element(), call.input<void>(0),
                           call.ids(1), call.input<float>(2), call.input<void>(3),
                           call.input<void>(4), a.has_bias ? call.input<float>(5) : nullptr,
                           a.has_bias ? call.input<float>(6) : nullptr, call.output<void>(0)},
                          tile_rows, call.workspace(), call.stream());
  }
};

}  // namespace moe_export::gpu
