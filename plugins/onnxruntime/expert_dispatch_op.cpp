#include "expert_dispatch_op.h"

#include <limits>

#include "attribute_reader.h"
#include "expert_dispatch.h"
#include "kernel_io.h"
#include "shape_inference.h"
#include "spec/attribute_checks.h"

namespace moe_export::ort {

ExpertDispatchKernel::ExpertDispatchKernel(const OrtApi* api, const OrtKernelInfo* info)
    : api_(api) {
  attributes_.visit(AttributeReader(api, info, "dispatch_attributes"));
  check_attributes(attributes_);
  check_input_count(api, info, "dispatch_inputs", input_names(attributes_));
}

void ExpertDispatchKernel::compute(OrtKernelContext* context) const {
  const KernelIo io(api_, context);
  const TensorView x = io.floats(0, "dispatch_inputs", "x");
  const TensorView ids = io.expert_ids(1, "dispatch_inputs");
  check_shapes(attributes_, {x.shape, ids.shape});
  const int64_t num_tokens = ids.shape[0], top_k = ids.shape[1];
  const int64_t num_slots = num_tokens * top_k;
  constexpr int64_t kMaxRows = std::numeric_limits<int32_t>::max();
  require(num_slots <= kMaxRows, "dispatch_c4", [&] {
    return "expert_ids has " + std::to_string(num_slots) + " slots; row_map numbers at most " +
           std::to_string(kMaxRows);
  });
  SessionThreadPool pool(api_, context);
  cpu::expert_dispatch(
      attributes_,
      {num_tokens, top_k, x.floats(), ids.ids(),
       io.output<float>(0, {num_slots, attributes_.hidden_size}), io.output<int32_t>(1, ids.shape),
       io.output<int32_t>(2, {attributes_.num_experts}), io.output<int32_t>(3, {num_slots})},
      pool);
}

void ExpertDispatchKernel::infer_shapes(const OrtApi* api, OrtShapeInferContext* context) {
  const Dimension tokens = inferred_dimension(api, context, 0, 0);
  const Dimension top_k = inferred_dimension(api, context, 1, 1);
  const bool known = tokens.size >= 0 && top_k.size >= 0;
  const Dimension rows = known ? Dimension{tokens.size * top_k.size, ""} : new_dimension();
  const std::vector<Dimension> shapes[] = {
      {rows, {inferred_attribute(api, context, "hidden_size"), ""}},
      {tokens, top_k},
      {{inferred_attribute(api, context, "num_experts"), ""}},
      {rows}};
  for (size_t i = 0; i < std::size(kOutputTypes); ++i) {
    set_inferred_output(api, context, i, kOutputTypes[i], shapes[i]);
  }
}

}  // namespace moe_export::ort
