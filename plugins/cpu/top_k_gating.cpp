#include "top_k_gating.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "expert_kernels.h"

namespace moe_export::cpu {
namespace {

/// Logits per task: enough work to be worth a thread's while.
constexpr int64_t kTaskLogits = 8192;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

float sqrt_softplus(float value) {
  return std::sqrt(std::max(value, 0.0f) + std::log1p(std::exp(-std::abs(value))));
}

/// Writes to `best` the first `count` of [0, size) by descending value; ties go to the lower
/// index. No value is NaN.
void select_top(const float* values, int64_t size, int64_t count, std::vector<int32_t>& best) {
  best.resize(count);
  int64_t found = 0;
  for (int64_t i = 0; i < size; ++i) {
    if (found == count && !(values[i] > values[best[count - 1]])) continue;
    int64_t place = found < count ? found++ : count - 1;
    for (; place > 0 && values[i] > values[best[place - 1]]; --place) best[place] = best[place - 1];
    best[place] = static_cast<int32_t>(i);
  }
}

/// Routes tokens one after the other; its buffers are reused.
class Router {
 public:
  Router(const TopKGatingAttributes& attributes, const TopKGatingTensors& tensors,
         const ExpertKernels& kernels)
      : attributes_(attributes),
        tensors_(tensors),
        kernels_(kernels),
        score_(tensors.num_experts),
        choice_(tensors.num_experts) {}

  void route(int64_t token) {
    const float* const logits = tensors_.logits + token * tensors_.num_experts;
    std::copy_n(logits, tensors_.num_experts, score_.begin());
    score();
    choose();
    int32_t* const ids = tensors_.expert_ids + token * attributes_.top_k;
    std::copy_n(order_.begin(), attributes_.top_k, ids);
    weigh(logits, ids, tensors_.expert_weights + token * attributes_.top_k);
  }

 private:
  void score() {
    const int64_t count = tensors_.num_experts;
    switch (attributes_.score_function) {
      case ScoreFunction::kSoftmax:
        return kernels_.softmax(score_.data(), count);
      case ScoreFunction::kSigmoid:
        return kernels_.sigmoid(score_.data(), count);
      case ScoreFunction::kSqrtSoftplus:
        std::transform(score_.begin(), score_.end(), score_.begin(), sqrt_softplus);
        return;
      case ScoreFunction::kIdentity:
        return;
    }
  }

  void choose() {
    for (int64_t e = 0; e < tensors_.num_experts; ++e) {
      const float bias = tensors_.selection_bias ? tensors_.selection_bias[e] : 0.0f;
      const float choice = score_[e] + bias;
      choice_[e] = std::isnan(choice) ? -kInfinity : choice;
    }
    if (attributes_.num_groups > 1) exclude_groups();
    select_top(choice_.data(), tensors_.num_experts, attributes_.top_k, order_);
  }

  void exclude_groups() {
    const int64_t group_size = tensors_.num_experts / attributes_.num_groups;
    group_score_.resize(attributes_.num_groups);
    for (int64_t g = 0; g < attributes_.num_groups; ++g) {
      group_score_[g] = score_group(choice_.data() + g * group_size, group_size);
    }
    select_top(group_score_.data(), attributes_.num_groups, attributes_.num_groups, order_);
    const bool zero = attributes_.excluded_score == ExcludedScore::kZero;
    for (int64_t i = attributes_.top_groups; i < attributes_.num_groups; ++i) {
      std::fill_n(choice_.begin() + order_[i] * group_size, group_size, zero ? 0.0f : -kInfinity);
    }
  }

  float score_group(const float* choice, int64_t group_size) const {
    float first = -kInfinity, second = -kInfinity;
    for (int64_t i = 0; i < group_size; ++i) {
      second = std::max(second, std::min(first, choice[i]));
      first = std::max(first, choice[i]);
    }
    if (attributes_.group_score == GroupScore::kMax) return first;
    return std::isnan(first + second) ? -kInfinity : first + second;  // of two infinities
  }

  void weigh(const float* logits, const int32_t* ids, float* weights) const {
    const int64_t top_k = attributes_.top_k;
    const bool from_score = attributes_.weight_function == WeightFunction::kScore;
    for (int64_t k = 0; k < top_k; ++k) weights[k] = from_score ? score_[ids[k]] : logits[ids[k]];
    if (attributes_.weight_function == WeightFunction::kSoftmax) kernels_.softmax(weights, top_k);
    if (attributes_.weight_function == WeightFunction::kSigmoid) kernels_.sigmoid(weights, top_k);
    float divisor = 1.0f;
    if (attributes_.renormalize) {
      const float sum = std::accumulate(weights, weights + top_k, 0.0f);
      const bool add = attributes_.epsilon_mode == EpsilonMode::kAdd;
      divisor = add ? sum + attributes_.epsilon : std::max(sum, attributes_.epsilon);
    }
    for (int64_t k = 0; k < top_k; ++k) weights[k] = weights[k] / divisor * attributes_.scale;
  }

  const TopKGatingAttributes& attributes_;
  const TopKGatingTensors& tensors_;
  const ExpertKernels& kernels_;
  std::vector<float> score_;        // [E]
  std::vector<float> choice_;       // [E], score plus bias with NaN at the end
  std::vector<float> group_score_;  // [num_groups]
  std::vector<int32_t> order_;      // indices, best first
};

}  // namespace

void top_k_gating(const TopKGatingAttributes& attributes, const TopKGatingTensors& tensors, Isa isa,
                  ThreadPool& pool) {
  const int64_t chunk = std::max<int64_t>(1, kTaskLogits / tensors.num_experts);
  parallel_chunks(pool, tensors.num_tokens, chunk, [&](int64_t first, int64_t last) {
    Router router(attributes, tensors, expert_kernels(isa));
    for (int64_t token = first; token < last; ++token) router.route(token);
  });
}

}  // namespace moe_export::cpu
