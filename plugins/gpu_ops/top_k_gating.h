#pragma once
#include "cuda/top_k_gating.h"
#include "op.h"

namespace moe_export::gpu {

/// `TopKGating` by the host functions of plugins/cuda.
struct TopKGatingOp : BasicOp<TopKGatingAttributes> {
  static constexpr TensorKind kOutputs[] = {TensorKind::kInt, TensorKind::kFloat};

  static std::vector<TensorKind> inputs(const Attributes& a) {
    if (a.has_selection_bias) return {TensorKind::kElement, TensorKind::kFloat};
    return {TensorKind::kElement};
  }

  static void check_computed(const Attributes& a) {
    require(a.top_k <= cuda::kMostTopK, "gating_c2", [&] {
      return "this library computes top_k up to " + std::to_string(cuda::kMostTopK) + "; found " +
             std::to_string(a.top_k);
    });
  }

  static void check_shapes(const Attributes& a, const std::vector<Shape>& inputs,
                           std::optional<ElementType>) {
    moe_export::check_shapes(a, inputs);
    const Shape& logits = inputs[0];
    check_count("gating_c1", "logits' tokens", logits[0]);
    require(logits[1] <= cuda::kMostGatedExperts, "gating_c1", [&] {
      return "this library computes up to " + std::to_string(cuda::kMostGatedExperts) +
             " experts; logits has " + std::to_string(logits[1]);
    });
  }

  static void prepare(const Attributes&, ElementType element) {
    cuda::prepare_top_k_gating(element);
  }

  static void run(const Attributes& a, const Call& call, int) {
    cuda::top_k_gating(a,
                       {call.size(0, 0), call.size(0, 1), call.element(), call.input<void>(0),
                        a.has_selection_bias ? call.input<float>(1) : nullptr,
                        call.output<int32_t>(0), call.output<float>(1)},
                       call.stream());
  }
};

}  // namespace moe_export::gpu
