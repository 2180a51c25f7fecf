#include "creator.h"
#include "creators.h"
#include "expressions.h"
#include "gpu_ops/expert_dispatch.h"

namespace moe_export::trt {
namespace {

struct ExpertDispatchPlugin : gpu::ExpertDispatchOp {
  static void set_shapes(const Attributes& a, const DimsExprs* inputs, DimsExprs* outputs,
                         nvinfer1::IExprBuilder& builder) {
    const auto *const num_tokens = inputs[1].d[0], *const top_k = inputs[1].d[1];
    const auto* const num_slots =
        builder.operation(nvinfer1::DimensionOperation::kPROD, *num_tokens, *top_k);
    set_shape(outputs[0], {num_slots, builder.constant(a.hidden_size)});
    set_shape(outputs[1], {num_tokens, top_k});
    set_shape(outputs[2], {builder.constant(a.num_experts)});
    set_shape(outputs[3], {num_slots});
  }
};

}  // namespace

nvinfer1::IPluginCreatorV3One& expert_dispatch_creator() {
  static auto& creator = *new Creator<ExpertDispatchPlugin>;
  return creator;
}

}  // namespace moe_export::trt
