#include "top_k_gating.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace moe_export::cpu {
namespace {

/// Logits per task: enough work to be worth a thread's while.
constexpr int64_t kTaskLogits = 8192;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

void apply_softmax(float* values, int64_t count) {
  float top = values[0];
  for (int64_t i = 1; i < count; ++i) {
    if (values[i] > top || std::isnan(values[i])) top = values[i];
  }
  float sum = 0.0f;
  for (int64_t i = 0; i < count; ++i) sum += values[i] = std::exp(values[i] - top);
  for (int64_t i = 0; i < count; ++i) values[i] /= sum;
}

float sigmoid(float value) { return 1.0f / (1.0f + std::exp(-value)); }

float sqrt_softplus(float value) {
  return std::sqrt(std::max(value, 0.0f) + std::log1p(std::exp(-std::abs(value))));
}

void apply_score(ScoreFunction function, float* values, int64_t count) {
  switch (function) {
    case ScoreFunction::kSoftmax:
      return apply_softmax(values, count);
    case ScoreFunction::kSigmoid:
      std::transform(values, values + count, values, sigmoid);
      return;
    case ScoreFunction::kSqrtSoftplus:
      std::transform(values, values + count, values, sqrt_softplus);
      return;
    case ScoreFunction::kIdentity:
      return;
  }
}

/// Writes to `best` the first `count` of [0, size) by descending value; ties go to the lower
/// index, NaN comes last.
void select_top(const float* values, int64_t size, int64_t count, std::vector<int32_t>& best) {
  best.resize(size);
  std::iota(best.begin(), best.end(), 0);
  std::partial_sort(best.begin(), best.begin() + count, best.end(), [&](int32_t a, int32_t b) {
    if (values[a] > values[b]) return true;
    if (values[a] < values[b]) return false;
    const bool a_is_nan = std::isnan(values[a]);
    return a_is_nan == std::isnan(values[b]) ? a < b : !a_is_nan;
  });
}

/// Routes tokens one after the other; its buffers are reused.
class Router {
 public:
  Router(const TopKGatingAttributes& attributes, const TopKGatingTensors& tensors)
      : attributes_(attributes),
        tensors_(tensors),
        score_(tensors.num_experts),
        choice_(tensors.num_experts) {}

  void route(int64_t token) {
    const float* const logits = tensors_.logits + token * tensors_.num_experts;
    std::copy_n(logits, tensors_.num_experts, score_.begin());
    apply_score(attributes_.score_function, score_.data(), tensors_.num_experts);
    choose();
    int32_t* const ids = tensors_.expert_ids + token * attributes_.top_k;
    std::copy_n(order_.begin(), attributes_.top_k, ids);
    weigh(logits, ids, tensors_.expert_weights + token * attributes_.top_k);
  }

 private:
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
    return attributes_.group_score == GroupScore::kMax ? first : first + second;
  }

  void weigh(const float* logits, const int32_t* ids, float* weights) const {
    const int64_t top_k = attributes_.top_k;
    const bool from_score = attributes_.weight_function == WeightFunction::kScore;
    for (int64_t k = 0; k < top_k; ++k) weights[k] = from_score ? score_[ids[k]] : logits[ids[k]];
    if (attributes_.weight_function == WeightFunction::kSoftmax) apply_softmax(weights, top_k);
    if (attributes_.weight_function == WeightFunction::kSigmoid) {
      std::transform(weights, weights + top_k, weights, sigmoid);
    }
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
  std::vector<float> score_;        // [E]
  std::vector<float> choice_;       // [E], score plus bias with NaN at the end
  std::vector<float> group_score_;  // [num_groups]
  std::vector<int32_t> order_;      // indices, best first
};

}  // namespace

void top_k_gating(const TopKGatingAttributes& attributes, const TopKGatingTensors& tensors,
                  ThreadPool& pool) {
  const int64_t chunk = std::max<int64_t>(1, kTaskLogits / tensors.num_experts);
  parallel_chunks(pool, tensors.num_tokens, chunk, [&](int64_t first, int64_t last) {
    Router router(attributes, tensors);
    for (int64_t token = first; token < last; ++token) router.route(token);
  });
}

}  // namespace moe_export::cpu
