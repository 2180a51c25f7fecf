#include "expert_combine.h"

#include "expert_kernels.h"
#include "row_blocks.h"

namespace moe_export::cpu {

void expert_combine(const ExpertCombineAttributes& attributes, const ExpertCombineTensors& tensors,
                    Isa isa, ThreadPool& pool) {
  combine_rows<int32_t>(
      pool, expert_kernels(isa),
      {tensors.num_tokens, tensors.top_k, attributes.hidden_size, attributes.hidden_size,
       tensors.rows, tensors.row_map, tensors.expert_weights, tensors.y});
}

}  // namespace moe_export::cpu
