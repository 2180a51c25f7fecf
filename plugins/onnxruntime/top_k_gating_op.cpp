#include "top_k_gating_op.h"

#include "attribute_reader.h"
#include "kernel_io.h"
#include "shape_inference.h"
#include "top_k_gating.h"

namespace moe_export::ort {

using std::to_string;

TopKGatingKernel::TopKGatingKernel(const OrtApi* api, const OrtKernelInfo* info)
    : api_(api), isa_(cpu::choose_isa()) {
  attributes_.visit(AttributeReader(api, info, "gating_attributes"));
  check_attributes();
  std::vector<std::string> names = {"logits"};
  if (attributes_.has_selection_bias) names.push_back("selection_bias");
  check_input_count(api, info, "gating_inputs", names);
}

void TopKGatingKernel::check_attributes() const {
  const auto& a = attributes_;
  require(a.top_k >= 1, "gating_c2",
          [&] { return "top_k must be at least 1; found " + to_string(a.top_k); });
  require(a.num_groups >= 1, "gating_c4",
          [&] { return "num_groups must be at least 1; found " + to_string(a.num_groups); });
  require(1 <= a.top_groups && a.top_groups <= a.num_groups, "gating_c5", [&] {
    return "top_groups must lie in [1, num_groups = " + to_string(a.num_groups) + "]; found " +
           to_string(a.top_groups);
  });
  require(a.epsilon >= 0.0f, "gating_c7",
          [&] { return "epsilon must not be negative; found " + to_string(a.epsilon); });
}

void TopKGatingKernel::check_experts(int64_t num_experts) const {
  const auto& a = attributes_;
  require(a.top_k <= num_experts, "gating_c2", [&] {
    return "top_k = " + to_string(a.top_k) + " exceeds the " + to_string(num_experts) +
           " experts of logits";
  });
  require(num_experts % a.num_groups == 0, "gating_c4", [&] {
    return to_string(num_experts) +
           " experts do not divide into num_groups = " + to_string(a.num_groups);
  });
  const int64_t group_size = num_experts / a.num_groups;
  require(a.top_groups * group_size >= a.top_k, "gating_c5", [&] {
    return "top_groups = " + to_string(a.top_groups) + " of " + to_string(group_size) +
           " experts hold fewer than top_k = " + to_string(a.top_k);
  });
  require(
      a.num_groups == 1 || a.group_score == GroupScore::kMax || group_size >= 2, "gating_c6", [&] {
        return "group_score = top2_sum needs 2 experts per group; found " + to_string(group_size);
      });
}

void TopKGatingKernel::compute(OrtKernelContext* context) const {
  const KernelIo io(api_, context);
  const TensorView logits =
      io.input(0, "gating_inputs", "logits", {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT});
  require(logits.shape.size() == 2, "gating_c1",
          [&] { return "logits must be [T, E]; found " + to_string(logits.shape); });
  const int64_t num_tokens = logits.shape[0], num_experts = logits.shape[1];
  check_experts(num_experts);
  TensorView bias;
  if (attributes_.has_selection_bias) {
    bias = io.input(1, "gating_inputs", "selection_bias", {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT});
    require(bias.shape == Shape{num_experts}, "gating_c3", [&] {
      return "selection_bias must be [E = " + to_string(num_experts) + "]; found " +
             to_string(bias.shape);
    });
  }
  const Shape chosen = {num_tokens, attributes_.top_k};
  SessionThreadPool pool(api_, context);
  cpu::top_k_gating(attributes_,
                    {num_tokens, num_experts, logits.floats(), bias.floats(),
                     io.output<int32_t>(0, chosen), io.output<float>(1, chosen)},
                    isa_, pool);
}

void TopKGatingKernel::infer_shapes(const OrtApi* api, OrtShapeInferContext* context) {
  const std::vector<Dimension> chosen = {inferred_dimension(api, context, 0, 0),
                                         {inferred_attribute(api, context, "top_k"), ""}};
  for (size_t i = 0; i < std::size(kOutputTypes); ++i) {
    set_inferred_output(api, context, i, kOutputTypes[i], chosen);
  }
}

}  // namespace moe_export::ort
