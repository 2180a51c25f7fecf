#include "top_k_gating_op.h"

#include "attribute_reader.h"
#include "kernel_io.h"
#include "shape_inference.h"
#include "spec/attribute_checks.h"
#include "top_k_gating.h"

namespace moe_export::ort {

TopKGatingKernel::TopKGatingKernel(const OrtApi* api, const OrtKernelInfo* info)
    : api_(api), isa_(cpu::choose_isa()) {
  attributes_.visit(AttributeReader(api, info, "gating_attributes"));
  check_attributes(attributes_);
  check_input_count(api, info, "gating_inputs", input_names(attributes_));
}

void TopKGatingKernel::compute(OrtKernelContext* context) const {
  const KernelIo io(api_, context);
  const TensorView logits = io.floats(0, "gating_inputs", "logits");
  std::vector<Shape> shapes = {logits.shape};
  TensorView bias;
  if (attributes_.has_selection_bias) {
    bias = io.floats(1, "gating_inputs", "selection_bias");
    shapes.push_back(bias.shape);
  }
  check_shapes(attributes_, shapes);
  const int64_t num_tokens = logits.shape[0], num_experts = logits.shape[1];
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
