#include "grouped_experts_op.h"

#include "aligned_memory.h"
#include "attribute_checks.h"
#include "attribute_reader.h"
#include "grouped_experts.h"
#include "routed_tokens.h"
#include "shape_inference.h"

namespace moe_export::ort {

using std::to_string;

GroupedExpertsKernel::GroupedExpertsKernel(const OrtApi* api, const OrtKernelInfo* info)
    : api_(api), isa_(cpu::choose_isa()) {
  attributes_.visit(AttributeReader(api, info, "experts_attributes"));
  check_attributes();
  std::vector<std::string> names = {"x", "expert_ids", "expert_weights", "up_weight",
                                    "down_weight"};
  if (attributes_.has_bias) names.insert(names.end(), {"up_bias", "down_bias"});
  check_input_count(api, info, "experts_inputs", names);
}

void GroupedExpertsKernel::check_attributes() const {
  const auto& a = attributes_;
  check_stored_weights(a, {a.hidden_size, a.intermediate_size}, "experts_c4", "experts_c9");
  check_minimum("experts_c6", "num_experts", a.num_experts, 1);
  check_minimum("experts_c6", "hidden_size", a.hidden_size, 1);
  check_minimum("experts_c6", "intermediate_size", a.intermediate_size, 1);
  check_minimum("experts_c6", "first_expert", a.first_expert, 0);
  require(a.limit >= 0.0f, "experts_c7",
          [&] { return "limit must not be negative; found " + to_string(a.limit); });
  require(a.activation == Activation::kSilu || a.alpha == 1.0f, "experts_c7", [&] {
    return "alpha belongs to silu; found " + to_string(a.alpha) + " with " + name_of(a.activation);
  });
  require(a.gated || (a.limit == 0.0f && a.up_offset == 0.0f), "experts_c8",
          [] { return "limit and up_offset belong to gated experts"; });
}

void GroupedExpertsKernel::compute(OrtKernelContext* context) const {
  const auto& a = attributes_;
  const KernelIo io(api_, context);
  const RoutedTokens routed = read_routed_tokens(io, "experts", a.hidden_size);
  const TensorView weights =
      io.input(2, "experts_inputs", "expert_weights", {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT});
  require(weights.shape == routed.ids_shape, "experts_c3", [&] {
    return "expert_weights must have expert_ids' shape " + to_string(routed.ids_shape) +
           "; found " + to_string(weights.shape);
  });
  const int64_t up_rows = a.intermediate_size * (a.gated ? 2 : 1);
  const cpu::PackedExpertBytes packed = cpu::packed_expert_bytes(a);
  const TensorView up = io.weights(3, "experts_inputs", "experts_c4", "up_weight",
                                   {a.num_experts, up_rows, a.hidden_size}, packed.up);
  const TensorView down =
      io.weights(4, "experts_inputs", "experts_c4", "down_weight",
                 {a.num_experts, a.hidden_size, a.intermediate_size}, packed.down);
  TensorView up_bias, down_bias;
  if (a.has_bias) {
    up_bias = io.floats(5, "experts_inputs", "experts_c5", "up_bias", {a.num_experts, up_rows});
    down_bias =
        io.floats(6, "experts_inputs", "experts_c5", "down_bias", {a.num_experts, a.hidden_size});
  }
  const cpu::GroupedExpertsTensors tensors = {routed.num_tokens(),
                                              routed.top_k(),
                                              routed.x.floats(),
                                              weights.floats(),
                                              up.data,
                                              down.data,
                                              up_bias.floats(),
                                              down_bias.floats(),
                                              io.output<float>(0, routed.x.shape)};
  const cpu::GroupedExpertsPlan plan =
      cpu::plan_grouped_experts(a, routed.ids, routed.num_tokens() * routed.top_k(), isa_);
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
