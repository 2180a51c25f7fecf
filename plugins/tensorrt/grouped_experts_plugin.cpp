#include "creator.h"
#include "creators.h"
#include "expressions.h"
#include "gpu_ops/grouped_experts.h"

namespace moe_export::trt {
namespace {

struct GroupedExpertsPlugin : gpu::GroupedExpertsOp {
  static void set_shapes(const Attributes& a, const DimsExprs* inputs, DimsExprs* outputs,
                         nvinfer1::IExprBuilder& builder) {
    set_shape(outputs[0], {inputs[0].d[0], builder.constant(a.hidden_size)});
  }
};

}  // namespace

nvinfer1::IPluginCreatorV3One& grouped_experts_creator() {
  static auto& creator = *new Creator<GroupedExpertsPlugin>;
  return creator;
}

}  // namespace moe_export::trt
