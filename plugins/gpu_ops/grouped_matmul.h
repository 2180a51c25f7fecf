#pragma once
#include "cuda/grouped_matmul.h"
#include "op.h"

namespace moe_export::gpu {

/// `GroupedMatMul` by the host functions of plugins/cuda.
struct GroupedMatMulOp : BasicOp<GroupedMatMulAttributes> {
  static constexpr TensorKind kOutputs[] = {TensorKind::kElement};

  static std::vector<TensorKind> inputs(const Attributes& a) {
    std::vector<TensorKind> kinds = {TensorKind::kElement, TensorKind::kPacked, TensorKind::kInt};
    if (a.has_bias) kinds.push_back(TensorKind::kFloat);
    return kinds;
  }

  static std::vector<int> tiles(const Attributes& a, ElementType element) {
    return cuda::grouped_matmul_tiles(a, element);
  }

  static void check_computed(const Attributes& a) {
    check_computed_weights<GroupedMatMulOp>(a, "matmul_c2");
  }

  static void check_element(const Attributes& a, ElementType element) {
    check_element_with_weights<GroupedMatMulOp>(a, element, "matmul_c2", "rows");
  }

  static void check_shapes(const Attributes& a, const std::vector<Shape>& inputs,
                           std::optional<ElementType> element) {
    const int64_t bytes = element ? cuda::packed_matrix_bytes(a, *element) : kUnknownSize;
    moe_export::check_shapes(a, inputs, bytes);
    check_count("matmul_c1", "rows' M", inputs[0][0]);
  }

  static size_t workspace_bytes(const Attributes& a, ElementType element,
                                const std::vector<Shape>& inputs) {
    return cuda::grouped_matmul_workspace_bytes(a, element, inputs[0][0]);
  }

  static void prepare(const Attributes& a, ElementType element) {
    cuda::prepare_grouped_matmul(a, element);
  }

  static void run(const Attributes& a, const Call& call, int tile_rows) {
    cuda::grouped_matmul(
        a,
        {call.size(0, 0), call.element(), call.input<void>(0), call.input<void>(1),
         call.input<int32_t>(2), a.has_bias ? call.input<float>(3) : nullptr, call.output<void>(0)},
        tile_rows, call.workspace(), call.stream());
  }
};

}  // namespace moe_export::gpu
