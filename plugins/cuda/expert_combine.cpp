#include "expert_combine.h"

#include "row_launches.h"

namespace moe_export::cuda {

void prepare_expert_combine(ElementType element) { prepare_combine(element, false); }

void expert_combine(const ExpertCombineAttributes& attributes, const ExpertCombineTensors& tensors,
                    Stream stream) {
  const auto& t = tensors;
  if (t.num_tokens == 0) return;
  combine_rows({t.rows, t.row_map, t.expert_weights, t.y, attributes.hidden_size,
                static_cast<int32_t>(t.num_rows), static_cast<int32_t>(t.num_tokens),
                static_cast<int32_t>(t.top_k), static_cast<int32_t>(attributes.hidden_size)},
               t.element, false, stream);
}

}  // namespace moe_export::cuda
