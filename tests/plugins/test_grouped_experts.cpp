#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "expert_kernels.h"
#include "expert_layer.h"
#include "grouped_experts.h"
#include "scratch.h"
#include "shuffled_pool.h"

using namespace moe_export;
using cpu::Isa;
using namespace moe_export::test;

namespace {

// float32 sums of up to a few hundred products of size 1, relative to the largest output.
constexpr double kTolerance = 1e-5;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> compute(const Layer& layer, Isa isa, cpu::ThreadPool& pool) {
  const auto pointer = [](const std::vector<float>& v) { return v.empty() ? nullptr : v.data(); };
  std::vector<float> y(layer.num_tokens * layer.attributes.hidden_size, kNan);
  const cpu::GroupedExpertsPlan plan =
      cpu::plan_grouped_experts(layer.attributes, {layer.ids.data(), true}, layer.ids.size(), isa);
  const test::Scratch workspace(cpu::grouped_experts_workspace_bytes(layer.attributes, plan));
  cpu::grouped_experts(
      layer.attributes,
      {layer.num_tokens, layer.top_k, layer.x.data(), layer.weights.data(), layer.up.data(),
       layer.down.data(), pointer(layer.up_bias), pointer(layer.down_bias), y.data()},
      plan, workspace.data(), pool);
  return y;
}

std::vector<float> compute(const Layer& layer, Isa isa) {
  cpu::SerialPool pool;
  return compute(layer, isa, pool);
}

void test_shapes(Isa isa, const std::string& suffix) {
  const Sizes shapes[] = {{0, 2, 3, 16, 16}, {1, 1, 1, 1, 1},    {5, 2, 4, 33, 17},
                          {7, 9, 3, 15, 31}, {40, 3, 2, 64, 48}, {3, 2, 5, 130, 7}};
  for (const Sizes& sizes : shapes) {
    run_case("experts_c1_shape_" + std::to_string(sizes.hidden) + suffix, [&] {
      const Layer layer = random_layer(attributes_of(sizes), sizes.tokens, sizes.top_k);
      expect_close(compute(layer, isa), reference(layer), kTolerance);
    });
  }
}

void test_forms(Isa isa, const std::string& suffix) {
  for (const auto activation : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh,
                                Activation::kRelu, Activation::kRelu2, Activation::kIdentity}) {
    for (int form = 0; form < 16; ++form) {
      GroupedExpertsAttributes attributes = attributes_of({9, 3, 4, 37, 21});
      attributes.activation = activation;
      attributes.gated = form & 1;
      attributes.has_bias = form & 2;
      attributes.weight_on = form & 4 ? WeightOn::kInput : WeightOn::kOutput;
      attributes.limit_on = form & 8 ? LimitOn::kOutput : LimitOn::kInput;
      attributes.first_expert = 3;
      if (attributes.gated) attributes.limit = 0.75f, attributes.up_offset = 1.0f;
      if (activation == Activation::kSilu) attributes.alpha = 1.702f;
      const std::string name = std::to_string(static_cast<int>(activation)) + "_form_";
      run_case("experts_c7_activation_" + name + std::to_string(form) + suffix, [&] {
        const Layer layer = random_layer(attributes, 9, 3);
        expect_close(compute(layer, isa), reference(layer), kTolerance);
      });
    }
  }
}

void test_activation_extremes(Isa isa, const std::string& suffix) {
  for (const auto activation : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh}) {
    run_case("activation_extremes_" + std::to_string(static_cast<int>(activation)) + suffix, [&] {
      GroupedExpertsAttributes attributes = attributes_of({0, 1, 1, 1, 1});
      attributes.activation = activation;
      attributes.gated = false;
      Layer layer = random_layer(attributes, 7, 1);
      layer.x = {-1e30f, -200.0f, -20.0f, 0.0f, 200.0f, 1e30f, kInfinity};
      layer.weights.assign(7, 1.0f);
      layer.up = layer.down = {1.0f};
      layer.ids.assign(7, 0);
      const std::vector<float> y = compute(layer, isa);
      for (int i = 0; i < 4; ++i) expect(std::abs(y[i]) < 1e-7f, "negative end");
      for (int i = 4; i < 7; ++i) expect(y[i] == layer.x[i], "positive end");
    });
  }
}

void test_independence(Isa isa, const std::string& suffix) {
  GroupedExpertsAttributes attributes = attributes_of({67, 3, 6, 75, 90});
  attributes.activation = Activation::kGelu;
  attributes.has_bias = true;
  const Layer layer = random_layer(attributes, 67, 3);
  const int64_t h = attributes.hidden_size;
  const std::vector<float> y = compute(layer, isa);
  run_case("same_bits_for_any_threads" + suffix, [&] {
    for (int num_threads = 2; num_threads <= 5; ++num_threads) {
      test::ShuffledPool pool(num_threads);
      expect(same_bits(compute(layer, isa, pool).data(), y.data(), y.size()), "bits differ");
    }
  });
  run_case("same_bits_alone_and_in_a_batch" + suffix, [&] {
    for (int64_t t = 0; t < layer.num_tokens; ++t) {
      expect(same_bits(compute(alone(layer, t), isa).data(), y.data() + t * h, h),
             "token " + std::to_string(t));
    }
  });
  for (const float poison : {kNan, kInfinity}) {
    run_case("a_poisoned_token_touches_no_other" + suffix, [&] {
      Layer poisoned = layer;
      std::fill_n(poisoned.ids.begin(), poisoned.ids.size(), 2);
      const std::vector<float> clean = compute(poisoned, isa);
      std::fill_n(poisoned.x.begin() + 20 * h, h, poison);
      const std::vector<float> found = compute(poisoned, isa);
      expect(same_bits(found.data(), clean.data(), 20 * h), "tokens before");
      expect(same_bits(found.data() + 21 * h, clean.data() + 21 * h, 46 * h), "tokens after");
      expect(!std::isfinite(found[20 * h]), "the poison must show");
    });
  }
}

void test_routings(Isa isa, const std::string& suffix) {
  const GroupedExpertsAttributes attributes = attributes_of({50, 2, 4, 20, 24});
  const std::pair<const char*, std::vector<int64_t>> routings[] = {
      {"all_tokens_on_one_expert", {3, 3}},
      {"idle_experts", {0, 2}},
      {"experts_c2_no_id_in_range", {-1, 4}},
      {"experts_c2_ids_beyond_int32",
       {(int64_t{1} << 32) + 1, std::numeric_limits<int64_t>::min()}},
  };
  for (const auto& [name, pattern] : routings) {
    run_case(name + suffix, [&, &ids = pattern] {
      Layer layer = random_layer(attributes, 50, 2);
      for (size_t i = 0; i < layer.ids.size(); ++i) layer.ids[i] = ids[i % 2];
      expect_close(compute(layer, isa), reference(layer), kTolerance);
    });
  }
  run_case("ids_out_of_range_cost_no_scratch" + suffix, [&] {
    const std::vector<int32_t> ids = {0, -1, 4, 7, 3, -1, 4, 7};
    const cpu::ExpertIds all = {ids.data(), false};
    const auto bytes = [&](int64_t num_pairs) {
      const auto plan = cpu::plan_grouped_experts(attributes, all, num_pairs, isa);
      return cpu::grouped_experts_workspace_bytes(attributes, plan);
    };
    const size_t row = (cpu::padded_width(20) + cpu::padded_width(24)) * sizeof(float);
    expect(bytes(4) == row && bytes(8) == 2 * row, "a row each for ids 0 and 3");
  });
  run_case("a_poisoned_expert_shows_only_where_used" + suffix, [&] {
    Layer layer = random_layer(attributes, 50, 2);
    const size_t size = layer.down.size() / attributes.num_experts;
    std::fill_n(layer.down.begin() + size, size, kNan);
    const std::vector<float> y = compute(layer, isa);
    for (int64_t t = 0; t < 50; ++t) {
      const bool used = layer.ids[t * 2] == 1 || layer.ids[t * 2 + 1] == 1;
      expect(std::isnan(y[t * 20]) == used, "token " + std::to_string(t));
    }
  });
}

}  // namespace

int main() {
  for (int isa = 0; isa <= static_cast<int>(cpu::choose_isa()); ++isa) {
    for (const auto test :
         {test_shapes, test_forms, test_activation_extremes, test_independence, test_routings}) {
      test(static_cast<Isa>(isa), std::string("_") + cpu::isa_name(static_cast<Isa>(isa)));
    }
  }
  return test::finish();
}
