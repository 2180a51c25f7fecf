#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "spec/contract.h"

namespace moe_export::test {

/// A layer with a call: weights row-major float32.
struct Layer {
  GroupedExpertsAttributes attributes;
  int64_t num_tokens, top_k;
  std::vector<float> x, weights, up, down, up_bias, down_bias;
  std::vector<int64_t> ids;
};

struct Sizes {
  int64_t tokens, top_k, experts, hidden, intermediate;
};

inline GroupedExpertsAttributes attributes_of(const Sizes& sizes) {
  GroupedExpertsAttributes attributes;
  attributes.num_experts = sizes.experts;
  attributes.hidden_size = sizes.hidden;
  attributes.intermediate_size = sizes.intermediate;
  return attributes;
}

inline Layer random_layer(const GroupedExpertsAttributes& attributes, int64_t num_tokens,
                          int64_t top_k) {
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

inline double activate(double g, const GroupedExpertsAttributes& a) {
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

inline double inner(double gate, double up, const GroupedExpertsAttributes& a) {
  if (!a.gated) return activate(up, a);
  const double limit = a.limit > 0 ? a.limit : std::numeric_limits<double>::infinity();
  const double activated = a.limit_on == LimitOn::kInput ? activate(std::min(gate, limit), a)
                                                         : std::min(activate(gate, a), limit);
  return activated * (std::clamp(up, -limit, limit) + a.up_offset);
}

/// The contract as loops in double.
inline std::vector<double> reference(const Layer& layer) {
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

/// Fails unless the values agree, relative to the largest one expected or to 1.
inline void expect_close(const std::vector<float>& found, const std::vector<double>& expected,
                         double tolerance) {
  double scale = 1.0;
  for (const double value : expected) scale = std::max(scale, std::abs(value));
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(found[i] - expected[i]) / scale;
    expect(error <= tolerance, "error " + std::to_string(error) + " at " + std::to_string(i));
  }
}

inline bool same_bits(const float* a, const float* b, int64_t count) {
  return std::memcmp(a, b, count * sizeof(float)) == 0;
}

/// The layer with only token `t`.
inline Layer alone(const Layer& layer, int64_t t) {
  Layer one = layer;
  const int64_t h = layer.attributes.hidden_size, k = layer.top_k;
  one.num_tokens = 1;
  one.x.assign(layer.x.begin() + t * h, layer.x.begin() + (t + 1) * h);
  one.ids.assign(layer.ids.begin() + t * k, layer.ids.begin() + (t + 1) * k);
  one.weights.assign(layer.weights.begin() + t * k, layer.weights.begin() + (t + 1) * k);
  return one;
}

}  // namespace moe_export::test
