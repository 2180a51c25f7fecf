#include "creator.h"
#include "creators.h"
#include "expressions.h"
#include "gpu_ops/expert_combine.h"

namespace moe_export::trt {
namespace {

struct ExpertCombinePlugin : gpu::ExpertCombineOp {
  static void set_shapes(const Attributes& a, const DimsExprs* inputs, DimsExprs* outputs,
                         nvinfer1::IExprBuilder& builder) {
    set_shape(outputs[0], {inputs[1].d[0], builder.constant(a.hidden_size)});
  }
};

}  // namespace

nvinfer1::IPluginCreatorV3One& expert_combine_creator() {
  static auto& creator = *new Creator<ExpertCombinePlugin>;
  return creator;
}

}  // namespace moe_export::trt
