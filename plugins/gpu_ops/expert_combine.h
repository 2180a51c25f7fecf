#pragma once
#include "cuda/expert_combine.h"
#include "op.h"

namespace moe_export::gpu {

/// `ExpertCombine` by the host functions of plugins/cuda.
struct ExpertCombineOp : BasicOp<ExpertCombineAttributes> {
  static constexpr TensorKind kOutputs[] = {TensorKind::kElement};

  static std::vector<TensorKind> inputs(const Attributes&) {
    return {TensorKind::kElement, TensorKind::kInt, TensorKind::kFloat};
  }

  static void check_shapes(const Attributes& a, const std::vector<Shape>& inputs,
                           std::optional<ElementType>) {
    moe_export::check_shapes(a, inputs);
    check_count("combine_c1", "rows' M", inputs[0][0]);
    check_slots("combine_c2", "row_map", inputs[1]);
  }

  static void prepare(const Attributes&, ElementType element) {
    cuda::prepare_expert_combine(element);
  }

  static void run(const Attributes& a, const Call& call, int) {
    cuda::expert_combine(
        a,
        {call.size(0, 0), call.size(1, 0), call.size(1, 1), call.element(), call.input<void>(0),
         call.input<int32_t>(1), call.input<float>(2), call.output<void>(0)},
        call.stream());
  }
};

}  // namespace moe_export::gpu
