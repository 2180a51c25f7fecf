#include "grouped_experts_op.h"

#include "aligned_memory.h"
#include "attribute_reader.h"
#include "grouped_experts.h"
#include "kernel_io.h"
#include "shape_inference.h"
#include "stored_weights.h"

namespace moe_export::ort {

GroupedExpertsKernel::GroupedExpertsKernel(const OrtApi* api, const OrtKernelInfo* info)
    : api_(api), isa_(cpu::choose_isa()) {
  attributes_.visit(AttributeReader(api, info, "experts_attributes"));
  check_attributes(attributes_);
  check_stored_weights(attributes_, "experts_c4");
  check_input_count(api, info, "experts_inputs", input_names(attributes_));
}

void GroupedExpertsKernel::compute(OrtKernelContext* context) const {
  const auto& a = attributes_;
  const std::string inputs = "experts_inputs";
  const KernelIo io(api_, context);
  const cpu::PackedExpertBytes packed = cpu::packed_expert_bytes(a);
  const TensorView x = io.floats(0, inputs, "x"), ids = io.expert_ids(1, inputs);
  const TensorView weights = io.floats(2, inputs, "expert_weights");
  const TensorView up = io.weights(3, inputs, "up_weight", packed.up);
  const TensorView down = io.weights(4, inputs, "down_weight", packed.down);
  std::vector<Shape> shapes = {x.shape, ids.shape, weights.shape, up.shape, down.shape};
  TensorView up_bias, down_bias;
  if (a.has_bias) {
    up_bias = io.floats(5, inputs, "up_bias");
    down_bias = io.floats(6, inputs, "down_bias");
    shapes.insert(shapes.end(), {up_bias.shape, down_bias.shape});
  }
  check_shapes(a, shapes, packed.up, packed.down);
  const cpu::GroupedExpertsTensors tensors = {ids.shape[0],
                                              ids.shape[1],
                                              x.floats(),
                                              weights.floats(),
                                              up.data,
                                              down.data,
                                              up_bias.floats(),
                                              down_bias.floats(),
                                              io.output<float>(0, x.shape)};
  const cpu::GroupedExpertsPlan plan =
      cpu::plan_grouped_experts(a, ids.ids(), ids.shape[0] * ids.shape[1], isa_);
  const cpu::AlignedMemory workspace(cpu::grouped_experts_workspace_bytes(a, plan));
  SessionThreadPool pool(api_, context);
  cpu::grouped_experts(a, tensors, plan, workspace.data(), pool);
}

void GroupedExpertsKernel::infer_shapes(const OrtApi* api, OrtShapeInferContext* context) {
  set_inferred_output(api, context, 0, kOutputTypes[0],
                      {inferred_dimension(api, context, 0, 0),
                       {inferred_attribute(api, context, "hidden_size"), ""}});
}

}  // namespace moe_export::ort
