#include "creator.h"
#include "creators.h"
#include "expressions.h"
#include "gpu_ops/grouped_matmul.h"

namespace moe_export::trt {
namespace {

struct GroupedMatMulPlugin : gpu::GroupedMatMulOp {
  static void set_shapes(const Attributes& a, const DimsExprs* inputs, DimsExprs* outputs,
                         nvinfer1::IExprBuilder& builder) {
    set_shape(outputs[0], {inputs[0].d[0], builder.constant(a.out_features)});
  }
};

}  // namespace

nvinfer1::IPluginCreatorV3One& grouped_matmul_creator() {
  static auto& creator = *new Creator<GroupedMatMulPlugin>;
  return creator;
}

}  // namespace moe_export::trt
