#pragma once
#include "cuda/expert_dispatch.h"
#include "op.h"

namespace moe_export::gpu {

/// `ExpertDispatch` by the host functions of plugins/cuda.
struct ExpertDispatchOp : BasicOp<ExpertDispatchAttributes> {
  static constexpr TensorKind kOutputs[] = {TensorKind::kElement, TensorKind::kInt,
                                            TensorKind::kInt, TensorKind::kInt};

  static std::vector<TensorKind> inputs(const Attributes&) {
    return {TensorKind::kElement, TensorKind::kIds};
  }

  static void check_shapes(const Attributes& a, const std::vector<Shape>& inputs,
                           std::optional<ElementType>) {
    moe_export::check_shapes(a, inputs);
    check_slots("dispatch_c4", "expert_ids", inputs[1]);
  }

  static size_t workspace_bytes(const Attributes& a, ElementType,
                                const std::vector<Shape>& inputs) {
    return cuda::expert_dispatch_workspace_bytes(a, inputs[1][0] * inputs[1][1]);
  }

  static void prepare(const Attributes& a, ElementType element) {
    cuda::prepare_expert_dispatch(a, element);
  }

  static void run(const Attributes& a, const Call& call, int) {
    cuda::expert_dispatch(a,
                          {call.size(1, 0), call.size(1, 1), call.element(), call.input<void>(0),
                           call.ids(1), call.output<void>(0), call.output<int32_t>(1),
                           call.output<int32_t>(2), call.output<int32_t>(3)},
                          call.workspace(), call.stream());
  }
};

}  // namespace moe_export::gpu
