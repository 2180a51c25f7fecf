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
#include "grouped_experts.h"
#include "scratch.h"
#include "shuffled_pool.h"

using namespace moe_export;
using cpu::Isa;
using test::expect;
using test::run_case;

namespace {

// float32 sums of up to a few hundred products of size 1, relative to the largest output.
constexpr double kTolerance = 1e-5;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Layer {
  GroupedExpertsAttributes attributes;
  int64_t num_tokens, top_k;
  std::vector<float> x, weights, up, down, up_bias, down_bias;
  std::vector<int64_t> ids;
};

struct Sizes {
  int64_t tokens, top_k, experts, hidden, intermediate;
};

GroupedExpertsAttributes attributes_of(const Sizes& sizes) {
  GroupedExpertsAttributes attributes;
  attributes.num_experts = sizes.experts;
  attributes.hidden_size = sizes.hidden;
  attributes.intermediate_size = sizes.intermediate;
  return attributes;
}

Layer random_layer(const GroupedExpertsAttributes& attributes, int64_t num_tokens, int64_t top_k) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  const auto draw = [&](int64_t count, float size) {
    std::vector<float> values(count);
    for (float& value : values) value = normal(random) * size;
    return values;
  };
  const auto& a = attributes;
  const int64_t e = a.num_experts, h = a.hidden_size, i = a.intermediate_size;
  const int64_t rows = i * (a.gated ? 2 : 1);
  Layer layer = {a, num_tokens, top_k, {}, {}, {}, {}, {}, {}, {}};
  layer.x = draw(num_tokens * h, 1.0f);
  layer.weights = draw(num_tokens * top_k, 1.0f);
  layer.up = draw(e * rows * h, 1.0f / std::sqrt(static_cast<float>(h)));
  layer.down = draw(e * h * i, 1.0f / std::sqrt(static_cast<float>(i)));
  if (a.has_bias) layer.up_bias = draw(e * rows, 1.0f), layer.down_bias = draw(e * h, 1.0f);
  // Two ids past each end, so that some pairs are dropped.
  std::uniform_int_distribution<int64_t> id(a.first_expert - 2, a.first_expert + e + 1);
  layer.ids.resize(num_tokens * top_k);
  for (int64_t& value : layer.ids) value = id(random);
  return layer;
}

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

double activate(double g, const GroupedExpertsAttributes& a) {
  switch (a.activation) {
    case Activation::kSilu:
      return g / (1 + std::exp(-static_cast<double>(a.alpha) * g));
    case Activation::kGelu:
      return g * 0.5 * (1 + std::erf(g / std::sqrt(2.0)));
    case Activation::kGeluTanh:
      return g * 0.5 * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (g + 0.044715 * g * g * g)));
    case Activation::kRelu:
      return std::max(g, 0.0);
    case Activation::kRelu2:
      return std::max(g, 0.0) * std::max(g, 0.0);
    case Activation::kIdentity:
      return g;
  }
  return 0;
}

double inner(double gate, double up, const GroupedExpertsAttributes& a) {
  if (!a.gated) return activate(up, a);
  const double limit = a.limit > 0 ? a.limit : std::numeric_limits<double>::infinity();
  const double activated = a.limit_on == LimitOn::kInput ? activate(std::min(gate, limit), a)
                                                         : std::min(activate(gate, a), limit);
  return activated * (std::clamp(up, -limit, limit) + a.up_offset);
}

/// The contract as loops in double.
std::vector<double> reference(const Layer& layer) {
  const auto& a = layer.attributes;
  const int64_t h = a.hidden_size, i = a.intermediate_size, gate_rows = a.gated ? i : 0;
  const int64_t rows = gate_rows + i;
  std::vector<double> y(layer.num_tokens * h, 0.0), hidden(i);
  for (size_t pair = 0; pair < layer.ids.size(); ++pair) {
    const int64_t e = layer.ids[pair] - a.first_expert;
    if (e < 0 || e >= a.num_experts) continue;
    const int64_t t = static_cast<int64_t>(pair) / layer.top_k;
    const bool on_input = a.weight_on == WeightOn::kInput;
    const double weight = layer.weights[pair];
    const auto project = [&](int64_t row) {
      double sum = a.has_bias ? layer.up_bias[e * rows + row] : 0.0;
      for (int64_t k = 0; k < h; ++k) {
        sum += (on_input ? weight : 1.0) * layer.x[t * h + k] * layer.up[(e * rows + row) * h + k];
      }
      return sum;
    };
    for (int64_t c = 0; c < i; ++c) hidden[c] = inner(project(c), project(gate_rows + c), a);
    for (int64_t row = 0; row < h; ++row) {
      double sum = a.has_bias ? layer.down_bias[e * h + row] : 0.0;
      for (int64_t c = 0; c < i; ++c) sum += hidden[c] * layer.down[(e * h + row) * i + c];
      y[t * h + row] += (on_input ? 1.0 : weight) * sum;
    }
  }
  return y;
}

void expect_close(const std::vector<float>& found, const std::vector<double>& expected) {
  double scale = 1.0;
  for (const double value : expected) scale = std::max(scale, std::abs(value));
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(found[i] - expected[i]) / scale;
    expect(error <= kTolerance, "error " + std::to_string(error) + " at " + std::to_string(i));
  }
}

bool same_bits(const float* a, const float* b, int64_t count) {
  return std::memcmp(a, b, count * sizeof(float)) == 0;
}

/// The layer with only token `t`.
Layer alone(const Layer& layer, int64_t t) {
  Layer one = layer;
  const int64_t h = layer.attributes.hidden_size, k = layer.top_k;
  one.num_tokens = 1;
  one.x.assign(layer.x.begin() + t * h, layer.x.begin() + (t + 1) * h);
  one.ids.assign(layer.ids.begin() + t * k, layer.ids.begin() + (t + 1) * k);
  one.weights.assign(layer.weights.begin() + t * k, layer.weights.begin() + (t + 1) * k);
  return one;
}

void test_shapes(Isa isa, const std::string& suffix) {
  const Sizes shapes[] = {{0, 2, 3, 16, 16}, {1, 1, 1, 1, 1},    {5, 2, 4, 33, 17},
                          {7, 9, 3, 15, 31}, {40, 3, 2, 64, 48}, {3, 2, 5, 130, 7}};
  for (const Sizes& sizes : shapes) {
    run_case("experts_c1_shape_" + std::to_string(sizes.hidden) + suffix, [&] {
      const Layer layer = random_layer(attributes_of(sizes), sizes.tokens, sizes.top_k);
      expect_close(compute(layer, isa), reference(layer));
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
        expect_close(compute(layer, isa), reference(layer));
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
      expect_close(compute(layer, isa), reference(layer));
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
