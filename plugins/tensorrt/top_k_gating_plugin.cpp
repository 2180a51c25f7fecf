#include "creator.h"
#include "creators.h"
#include "expressions.h"
#include "gpu_ops/top_k_gating.h"

namespace moe_export::trt {
namespace {

struct TopKGatingPlugin : gpu::TopKGatingOp {
  static void set_shapes(const Attributes& a, const DimsExprs* inputs, DimsExprs* outputs,
                         nvinfer1::IExprBuilder& builder) {
    for (int i : {0, 1}) set_shape(outputs[i], {inputs[0].d[0], builder.constant(a.top_k)});
  }
};

}  // namespace

nvinfer1::IPluginCreatorV3One& top_k_gating_creator() {
  static auto& creator = *new Creator<TopKGatingPlugin>;
  return creator;
}

}  // namespace moe_export::trt
