#include "expert_dispatch_op.h"

#include <limits>

#include "attribute_checks.h"
#include "attribute_reader.h"
#include "expert_dispatch.h"
#include "routed_tokens.h"
#include "shape_inference.h"

namespace moe_export::ort {

ExpertDispatchKernel::ExpertDispatchKernel(const OrtApi* api, const OrtKernelInfo* info)
    : api_(api) {
  attributes_.visit(AttributeReader(api, info, "dispatch_attributes"));
  check_minimum("dispatch_c3", "num_experts", attributes_.num_experts, 1);
  check_minimum("dispatch_c3", "hidden_size", attributes_.hidden_size, 1);
  check_minimum("dispatch_c3", "first_expert", attributes_.first_expert, 0);
  check_input_count(api, info, "dispatch_inputs", {"x", "expert_ids"});
}

void ExpertDispatchKernel::compute(OrtKernelContext* context) const {
  const KernelIo io(api_, context);
  const RoutedTokens routed = read_routed_tokens(io, "dispatch", attributes_.hidden_size);
  const int64_t num_slots = routed.num_tokens() * routed.top_k();
  constexpr int64_t kMaxRows = std::numeric_limits<int32_t>::max();
  require(num_slots <= kMaxRows, "dispatch_c4", [&] {
    return "expert_ids has " + std::to_string(num_slots) + " slots; row_map numbers at most " +
           std::to_string(kMaxRows);
  });
  SessionThreadPool pool(api_, context);
  cpu::expert_dispatch(
      attributes_,
      {routed.num_tokens(), routed.top_k(), routed.x.floats(), routed.ids,
       io.output<float>(0, {num_slots, attributes_.hidden_size}),
       io.output<int32_t>(1, routed.ids_shape), io.output<int32_t>(2, {attributes_.num_experts}),
       io.output<int32_t>(3, {num_slots})},
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
