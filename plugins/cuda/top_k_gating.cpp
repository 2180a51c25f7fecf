#include "top_k_gating.h"

#include <algorithm>
#include <string>

#include "top_k_gating_call.h"

namespace moe_export::cuda {
namespace {

const Kernel& gating_kernel(ElementType type) {
  return find_kernel("top_k_gating_" + std::string(name_of(type)));
}

}  // namespace

void prepare_top_k_gating(ElementType logit_type) { gating_kernel(logit_type); }

void top_k_gating(const TopKGatingAttributes& attributes, const TopKGatingTensors& tensors,
                  Stream stream) {
  if (tensors.num_tokens == 0) return;
  TopKGatingCall call = {attributes,
                         tensors.logits,
                         tensors.selection_bias,
                         tensors.expert_ids,
                         tensors.expert_weights,
                         static_cast<int32_t>(tensors.num_tokens),
                         static_cast<int32_t>(tensors.num_experts)};
  constexpr int64_t kSharedBytes = 48 << 10, kMostWarps = 4;
  const int64_t warp_bytes = gating_shared_bytes(tensors.num_experts);
  const int64_t warps = std::clamp<int64_t>(kSharedBytes / warp_bytes, 1, kMostWarps);
  void* const arguments[] = {&call};
  launch(gating_kernel(tensors.logit_type),
         {static_cast<uint32_t>((tensors.num_tokens + warps - 1) / warps)},
         static_cast<uint32_t>(warps * 32), static_cast<uint32_t>(warps * warp_bytes), arguments,
         stream);
}

}  // namespace moe_export::cuda
