#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "shuffled_pool.h"
#include "top_k_gating.h"

using namespace moe_export;
using test::expect;
using test::run_case;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Routing {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Routing route(const TopKGatingAttributes& attributes, const std::vector<float>& logits,
              int64_t num_experts, cpu::ThreadPool& pool, const float* bias = nullptr,
              cpu::Isa isa = cpu::choose_isa()) {
  const int64_t num_tokens = static_cast<int64_t>(logits.size()) / num_experts;
  Routing routing;
  routing.ids.resize(num_tokens * attributes.top_k);
  routing.weights.resize(num_tokens * attributes.top_k);
  cpu::top_k_gating(
      attributes,
      {num_tokens, num_experts, logits.data(), bias, routing.ids.data(), routing.weights.data()},
      isa, pool);
  return routing;
}

Routing route_one(const TopKGatingAttributes& attributes, const std::vector<float>& logits,
                  const float* bias = nullptr) {
  cpu::SerialPool pool;
  return route(attributes, logits, static_cast<int64_t>(logits.size()), pool, bias);
}

TopKGatingAttributes plain(int64_t top_k) {
  TopKGatingAttributes attributes;
  attributes.top_k = top_k;
  attributes.score_function = ScoreFunction::kIdentity;
  return attributes;
}

void test_selection() {
  using Ids = std::vector<int32_t>;
  run_case("ties_go_to_the_lower_id",
           [] { expect(route_one(plain(3), {1, 2, 1, 2, 2}).ids == Ids{1, 3, 4}, "ids"); });
  run_case("nan_ranks_last_with_minus_infinity", [] {
    expect(route_one(plain(4), {kNan, -kInfinity, 5, kNan}).ids == Ids{2, 0, 1, 3}, "ids");
  });
  run_case("bias_chooses_but_does_not_weigh", [] {
    const float bias[] = {10, 0, 0};
    const Routing routing = route_one(plain(1), {1, 2, 3}, bias);
    expect(routing.ids[0] == 0 && routing.weights[0] == 1.0f, "expert 0 with its own score");
  });
  run_case("gating_c5_groups_left_out_are_excluded", [] {
    TopKGatingAttributes attributes = plain(3);
    attributes.num_groups = 2;
    attributes.group_score = GroupScore::kTop2Sum;
    expect(route_one(attributes, {9, -9, -9, 4, 3, 2}).ids == Ids{3, 4, 5}, "top2_sum");
    attributes.group_score = GroupScore::kMax;
    expect(route_one(attributes, {9, -9, -9, 4, 3, 2}).ids == Ids{0, 1, 2}, "max");
    attributes.excluded_score = ExcludedScore::kZero;
    expect(route_one(attributes, {9, -9, -9, 4, 3, 2}).ids == Ids{0, 3, 4}, "zero beats -9");
  });
  run_case("gating_c2_all_experts_can_be_kept", [] {
    std::vector<float> logits(3000);
    for (size_t e = 0; e < logits.size(); ++e) logits[e] = static_cast<float>(e);
    const Routing routing = route_one(plain(3000), logits);
    for (int32_t k = 0; k < 3000; ++k) expect(routing.ids[k] == 2999 - k, "descending");
  });
}

void test_weights() {
  run_case("softmax_weights_sum_to_one", [] {
    TopKGatingAttributes attributes = plain(3);
    attributes.score_function = ScoreFunction::kSoftmax;
    const Routing routing = route_one(attributes, {1, 0, 1000});
    expect(routing.ids[0] == 2 && routing.weights[0] == 1.0f, "no overflow");
  });
  run_case("gating_c7_epsilon_add_and_clamp", [] {
    TopKGatingAttributes attributes = plain(2);
    attributes.renormalize = true;
    attributes.epsilon = 2.0f;
    attributes.scale = 8.0f;
    expect(route_one(attributes, {1, 1}).weights[0] == 2.0f, "1 / (2 + 2) * 8");
    attributes.epsilon_mode = EpsilonMode::kClamp;
    expect(route_one(attributes, {0.5f, 0.25f}).weights[0] == 2.0f, "0.5 / max(0.75, 2) * 8");
  });
}

void test_scores(cpu::Isa isa) {
  for (const auto function : {ScoreFunction::kSoftmax, ScoreFunction::kSigmoid}) {
    const bool softmax = function == ScoreFunction::kSoftmax;
    run_case(std::string(softmax ? "softmax_" : "sigmoid_") + cpu::isa_name(isa), [&] {
      for (const int64_t count : {1, 5, 16, 37, 256}) {
        std::mt19937 random(4);
        std::normal_distribution<float> normal(0.0f, 8.0f);
        std::vector<float> logits(count);
        for (float& value : logits) value = normal(random);
        TopKGatingAttributes attributes = plain(count);
        attributes.score_function = function;
        cpu::SerialPool pool;
        const Routing routing = route(attributes, logits, count, pool, nullptr, isa);
        double sum = 0;
        for (const float value : logits) sum += std::exp(static_cast<double>(value));
        for (int64_t k = 0; k < count; ++k) {
          const double power = std::exp(static_cast<double>(logits[routing.ids[k]]));
          const double expected = softmax ? power / sum : power / (1 + power);
          expect(std::abs(routing.weights[k] - expected) <= 1e-5 * expected + 1e-30, "weight");
          expect(k == 0 || routing.weights[k] <= routing.weights[k - 1], "order");
        }
      }
      TopKGatingAttributes attributes = plain(2);
      attributes.score_function = function;
      cpu::SerialPool pool;
      const Routing poisoned = route(attributes, {1, kNan, 2}, 3, pool, nullptr, isa);
      expect(std::isnan(poisoned.weights[0]) == softmax, "NaN spreads over a softmax");
    });
  }
}

void test_batches() {
  run_case("no_tokens", [] {
    cpu::SerialPool pool;
    expect(route(plain(1), {}, 4, pool).ids.empty(), "empty");
  });
  run_case("same_bits_for_any_threads", [] {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    std::vector<float> logits(1000 * 60);
    for (float& value : logits) value = normal(random);
    TopKGatingAttributes attributes = plain(6);
    attributes.score_function = ScoreFunction::kSqrtSoftplus;
    attributes.num_groups = 6;
    attributes.top_groups = 3;
    cpu::SerialPool serial;
    test::ShuffledPool parallel(4);
    const Routing expected = route(attributes, logits, 60, serial);
    const Routing found = route(attributes, logits, 60, parallel);
    expect(expected.ids == found.ids && expected.weights == found.weights, "bits differ");
  });
}

}  // namespace

int main() {
  test_selection();
  test_weights();
  for (int isa = 0; isa <= static_cast<int>(cpu::choose_isa()); ++isa) {
    test_scores(static_cast<cpu::Isa>(isa));
  }
  test_batches();
  return test::finish();
}
