// The kernel of `TopKGating`: a warp routes a token.
#pragma once
#include <cstdint>

#include "device.h"
#include "top_k_gating_call.h"

namespace moe_export::cuda {

/// Routes one token; the lanes of a warp call it together. Expert e is lane e % 32's.
template <class Logit>
class WarpRouter {
 public:
  __device__ WarpRouter(const TopKGatingCall& call, int64_t token, float* shared)
      : call_(call),
        attributes_(call.attributes),
        experts_(call.num_experts),
        logits_(static_cast<const Logit*>(call.logits) + token * call.num_experts),
        score_(shared),
        choice_(shared + call.num_experts),
        group_score_(shared + 2 * call.num_experts) {}

  __device__ void route(int32_t* ids, float* weights) {
    score();
    choose();
    const int id = select();
    const float weight = weigh(id);
    if (lane() >= attributes_.top_k) return;
    ids[lane()] = id;
    weights[lane()] = weight;
  }

 private:
  static constexpr float kInfinity = __builtin_huge_valf();

  __device__ float logit(int expert) const { return to_float(logits_[expert]); }

  __device__ static float sigmoid(float value) { return 1.0f / (expf(-value) + 1.0f); }
  __device__ static float sqrt_softplus(float value) {
    return sqrtf(fmaxf(value, 0.0f) + log1pf(expf(-fabsf(value))));
  }

  __device__ void score() {
    const ScoreFunction function = attributes_.score_function;
    float top = -kInfinity, sum = 0.0f;
    if (function == ScoreFunction::kSoftmax) {
      for (int e = lane(); e < experts_; e += kWarp) top = fmaxf(top, logit(e));
      top = warp_max(top);
    }
    for (int e = lane(); e < experts_; e += kWarp) {
      const float value = logit(e);
      score_[e] = function == ScoreFunction::kSoftmax        ? expf(value - top)
                  : function == ScoreFunction::kSigmoid      ? sigmoid(value)
                  : function == ScoreFunction::kSqrtSoftplus ? sqrt_softplus(value)
                                                             : value;
      sum += score_[e];
    }
    if (function != ScoreFunction::kSoftmax) return;
    sum = warp_sum(sum);
    for (int e = lane(); e < experts_; e += kWarp) score_[e] /= sum;
  }

  __device__ void choose() {
    for (int e = lane(); e < experts_; e += kWarp) {
      const float choice = score_[e] + (call_.selection_bias ? call_.selection_bias[e] : 0.0f);
      choice_[e] = choice == choice ? choice : -kInfinity;  // NaN ranks last
    }
    __syncwarp();
    if (attributes_.num_groups > 1) exclude_groups();
  }

  /// A lane excludes the groups that are its own.
  __device__ void exclude_groups() {
    const int groups = static_cast<int>(attributes_.num_groups), size = experts_ / groups;
    for (int g = lane(); g < groups; g += kWarp) group_score_[g] = score_group(g * size, size);
    __syncwarp();
    const float excluded = attributes_.excluded_score == ExcludedScore::kZero ? 0.0f : -kInfinity;
    for (int g = lane(); g < groups; g += kWarp) {
      int rank = 0;
      for (int other = 0; other < groups; ++other) {
        rank += group_score_[other] > group_score_[g] ||
                (group_score_[other] == group_score_[g] && other < g);
      }
      if (rank < attributes_.top_groups) continue;
      for (int e = g * size; e < (g + 1) * size; ++e) choice_[e] = excluded;
    }
    __syncwarp();
  }

  __device__ float score_group(int begin, int size) const {
    float first = -kInfinity, second = -kInfinity;
    for (int e = begin; e < begin + size; ++e) {
      second = fmaxf(second, fminf(first, choice_[e]));
      first = fmaxf(first, choice_[e]);
    }
    if (attributes_.group_score == GroupScore::kMax) return first;
    const float sum = first + second;
    return sum == sum ? sum : -kInfinity;  // of two infinities
  }

  struct Candidate {
    float choice;
    int expert;  ///< `experts_` for none
  };
  __device__ Candidate better(const Candidate& a, const Candidate& b) const {
    if (a.expert == experts_) return b;
    if (b.expert == experts_ || a.choice > b.choice) return a;
    return b.choice > a.choice || b.expert < a.expert ? b : a;
  }

  /// Lane k gets the k-th best expert.
  __device__ int select() const {
    uint64_t taken = 0;  // bit i: expert i * 32 + lane
    int mine = 0;
    for (int k = 0; k < attributes_.top_k; ++k) {
      Candidate best = {0.0f, experts_};
      for (int i = 0, e = lane(); e < experts_; ++i, e += kWarp) {
        if (!(taken >> i & 1)) best = better(best, {choice_[e], e});
      }
      for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        best = better(best, {__shfl_xor_sync(kAllLanes, best.choice, distance),
                             __shfl_xor_sync(kAllLanes, best.expert, distance)});
      }
      if (best.expert % kWarp == lane()) taken |= uint64_t{1} << best.expert / kWarp;
      if (lane() == k) mine = best.expert;
    }
    return mine;
  }

  /// The weight of each lane's expert.
  __device__ float weigh(int expert) const {
    const bool chosen = lane() < attributes_.top_k;
    const WeightFunction function = attributes_.weight_function;
    float weight = function == WeightFunction::kScore ? score_[expert] : logit(expert);
    if (function == WeightFunction::kSigmoid) weight = sigmoid(weight);
    if (function == WeightFunction::kSoftmax) {
      const float power = expf(weight - warp_max(chosen ? weight : -kInfinity));
      weight = power / warp_sum(chosen ? power : 0.0f);
    }
    float divisor = 1.0f;
    if (attributes_.renormalize) {
      const float sum = warp_sum(chosen ? weight : 0.0f);
      const bool add = attributes_.epsilon_mode == EpsilonMode::kAdd;
      // Not fmaxf: a sum that is NaN stays so.
      divisor = add                         ? sum + attributes_.epsilon
                : sum < attributes_.epsilon ? attributes_.epsilon
                                            : sum;
    }
    return weight / divisor * attributes_.scale;
  }

  const TopKGatingCall& call_;
  const TopKGatingAttributes& attributes_;
  const int experts_;
  const Logit* const logits_;
  float* const score_;        // [E]
  float* const choice_;       // [E], score plus bias with NaN at the end
  float* const group_score_;  // [num_groups]
};

/// Grid: ceil(T / warps of a block); shared memory: `gating_shared_bytes` for each warp.
template <class Logit>
__device__ void top_k_gating(const TopKGatingCall& call) {
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * warps + warp();
  if (token >= call.num_tokens) return;
  float* const own = shared_memory<float>() + 3 * call.num_experts * warp();
  WarpRouter<Logit>(call, token, own)
      .route(call.expert_ids + token * call.attributes.top_k,
             call.expert_weights + token * call.attributes.top_k);
}

}  // namespace moe_export::cuda
