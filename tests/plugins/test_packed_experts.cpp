#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "check.h"
#include "expert_layer.h"
#include "grouped_experts.h"
#include "grouped_matmul.h"
#include "scratch.h"
#include "shuffled_pool.h"
#include "stored_matrix.h"

using namespace moe_export;
using namespace moe_export::test;
using cpu::Isa;

namespace {

using Floats = std::vector<float>;

/// A layer whose weights are packed; `layer` holds what they mean.
struct PackedLayer {
  Layer layer;
  std::vector<char> up, down;
};

bool rounds_tokens(WeightType type, Isa isa) {
  return isa >= Isa::kAvx512Bf16 && type != WeightType::kFp32 && type != WeightType::kFp16;
}

// Relative to the largest output: sums of some hundred products in float32; with tokens rounded to
// bfloat16 (2^-9 each) or to int8 (1/254 of a block's largest each, twice).
double tolerance(WeightType type, Isa isa) {
  if (!rounds_tokens(type, isa)) return 1e-5;
  return type == WeightType::kBf16 ? 1e-2 : 4e-2;
}

PackedLayer random_packed(const Storage& storage, const Sizes& sizes,
                          GroupedExpertsAttributes attributes) {
  attributes.num_experts = sizes.experts;
  attributes.hidden_size = sizes.hidden;
  attributes.intermediate_size = sizes.intermediate;
  attributes.weight_type = storage.type;
  attributes.block_size = storage.block_size;
  attributes.has_zero_point = storage.has_zero_point;
  attributes.weight_layout = WeightLayout::kCpuV1;
  PackedLayer packed = {random_layer(attributes, sizes.tokens, sizes.top_k), {}, {}};
  packed.layer.up.clear(), packed.layer.down.clear();
  std::mt19937 random(5);
  const auto add = [&](int64_t rows, int64_t width, bool gated, Floats& weights,
                       std::vector<char>& bytes) {
    const StoredMatrix matrix(storage, rows, width, gated, random);
    weights.insert(weights.end(), matrix.weights.begin(), matrix.weights.end());
    bytes.insert(bytes.end(), matrix.bytes.begin(), matrix.bytes.end());
  };
  for (int64_t e = 0; e < sizes.experts; ++e) {
    const int64_t rows = sizes.intermediate * (attributes.gated ? 2 : 1);
    add(rows, sizes.hidden, attributes.gated, packed.layer.up, packed.up);
    add(sizes.hidden, sizes.intermediate, false, packed.layer.down, packed.down);
  }
  return packed;
}

Floats compute(const PackedLayer& packed, const Layer& layer, Isa isa, cpu::ThreadPool& pool) {
  const auto pointer = [](const Floats& v) { return v.empty() ? nullptr : v.data(); };
  Floats y(layer.num_tokens * layer.attributes.hidden_size,
           std::numeric_limits<float>::quiet_NaN());
  const cpu::GroupedExpertsPlan plan =
      cpu::plan_grouped_experts(layer.attributes, {layer.ids.data(), true}, layer.ids.size(), isa);
  const Scratch workspace(cpu::grouped_experts_workspace_bytes(layer.attributes, plan));
  cpu::grouped_experts(
      layer.attributes,
      {layer.num_tokens, layer.top_k, layer.x.data(), layer.weights.data(), packed.up.data(),
       packed.down.data(), pointer(layer.up_bias), pointer(layer.down_bias), y.data()},
      plan, workspace.data(), pool);
  return y;
}

Floats compute(const PackedLayer& packed, Isa isa) {
  cpu::SerialPool pool;
  return compute(packed, packed.layer, isa, pool);
}

/// A layer and what loops in double make of it.
struct Case {
  std::string name;
  PackedLayer packed;
  std::vector<double> expected;
};

void add_case(std::vector<Case>& cases, const std::string& name, PackedLayer packed) {
  std::vector<double> expected = reference(packed.layer);
  cases.push_back({name, std::move(packed), std::move(expected)});
}

void add_shapes(const Storage& storage, std::vector<Case>& cases) {
  // Sizes in units of 32 for mxfp4, whose blocks are whole.
  const int64_t unit = storage.type == WeightType::kMxfp4 ? 32 : 1;
  const Sizes shapes[] = {{0, 2, 3, 16, 16},  {1, 1, 1, 1, 1},    {5, 2, 4, 33, 17},
                          {7, 9, 3, 15, 31},  {40, 3, 2, 64, 48}, {90, 2, 1, 130, 70},
                          {3, 2, 40, 70, 20}, {33, 4, 40, 96, 40}};
  for (Sizes sizes : shapes) {
    sizes.hidden = (sizes.hidden + unit - 1) / unit * unit;
    sizes.intermediate = (sizes.intermediate + unit - 1) / unit * unit;
    const std::string name = std::to_string(sizes.hidden) + "_" + std::to_string(sizes.tokens);
    add_case(cases, "experts_c4_packed_shape_" + name, random_packed(storage, sizes, {}));
  }
}

/// So many tokens of one expert that several panels are multiplied together: with weights that are
/// read as they are, and with those that are decoded first. Three of four ids are out of range.
void add_many_tokens(const Storage& storage, std::vector<Case>& cases) {
  const bool decoded = storage.type == WeightType::kInt4 && storage.block_size == 32;
  if (storage.type != WeightType::kBf16 && !decoded) return;
  add_case(cases, "experts_c4_packed_many_tokens",
           random_packed(storage, {1050, 1, 1, 2112, 80}, {}));
}

void add_forms(const Storage& storage, std::vector<Case>& cases) {
  for (int form = 0; form < 8; ++form) {
    GroupedExpertsAttributes attributes;
    attributes.gated = form & 1;
    attributes.has_bias = form & 2;
    attributes.weight_on = form & 4 ? WeightOn::kInput : WeightOn::kOutput;
    attributes.activation = form & 1 ? Activation::kSilu : Activation::kGelu;
    attributes.first_expert = 3;
    if (attributes.gated) attributes.limit = 0.75f, attributes.up_offset = 1.0f;
    add_case(cases, "experts_c8_packed_form_" + std::to_string(form),
             random_packed(storage, {21, 3, 4, 96, 64}, attributes));
  }
}

void test_cases(const std::vector<Case>& cases, Isa isa, const std::string& suffix) {
  for (const Case& one : cases) {
    run_case(one.name + suffix, [&] {
      const double allowed = tolerance(one.packed.layer.attributes.weight_type, isa);
      expect_close(compute(one.packed, isa), one.expected, allowed);
    });
  }
}

void test_independence(const std::vector<PackedLayer>& layers, Isa isa, const std::string& suffix) {
  for (const PackedLayer& packed : layers) {
    const Layer& layer = packed.layer;
    const Floats y = compute(packed, isa);
    const std::string name = "_experts_" + std::to_string(layer.attributes.num_experts) + suffix;
    run_case("same_bits_for_any_threads" + name, [&] {
      ShuffledPool pool(3);
      expect(same_bits(compute(packed, layer, isa, pool).data(), y.data(), y.size()), "bits");
    });
    run_case("same_bits_alone_and_in_a_batch" + name, [&] {
      cpu::SerialPool pool;
      for (int64_t t = 0; t < layer.num_tokens; t += 6) {
        const Floats one = compute(packed, alone(layer, t), isa, pool);
        expect(same_bits(one.data(), y.data() + t * 96, 96), "token " + std::to_string(t));
      }
    });
    run_case("a_poisoned_token_touches_no_other" + name, [&] {
      Layer poisoned = layer;
      poisoned.ids[20 * 4] = 0;
      cpu::SerialPool pool;
      const Floats clean = compute(packed, poisoned, isa, pool);
      for (const float poison :
           {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        poisoned.x[20 * 96 + 7] = poison;
        const Floats found = compute(packed, poisoned, isa, pool);
        expect(same_bits(found.data(), clean.data(), 20 * 96), "tokens before");
        expect(same_bits(found.data() + 21 * 96, clean.data() + 21 * 96, 46 * 96), "after");
        expect(!std::isfinite(found[20 * 96]), "the poison must show");
      }
    });
  }
}

void test_tiles_and_vectors_agree(const Storage& storage, const std::string& suffix) {
  if (cpu::choose_isa() < Isa::kAmx || storage.type == WeightType::kBf16) return;
  run_case("same_bits_in_tiles_and_in_vectors" + suffix, [&] {
    const PackedLayer packed = random_packed(storage, {120, 2, 3, 320, 256}, {});
    const Floats a = compute(packed, Isa::kAvx512Bf16), b = compute(packed, Isa::kAmx);
    expect(same_bits(a.data(), b.data(), a.size()), "bits differ");
  });
}

void test_matmul(const Storage& storage, Isa isa, const std::string& suffix) {
  run_case("matmul_c2_packed" + suffix, [&] {
    GroupedMatMulAttributes a;
    a.num_experts = 3, a.in_features = 96, a.out_features = 70, a.has_bias = true;
    a.weight_type = storage.type, a.block_size = storage.block_size;
    a.has_zero_point = storage.has_zero_point, a.weight_layout = WeightLayout::kCpuV1;
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    Floats rows(50 * 96), bias(3 * 70), y(50 * 70, std::numeric_limits<float>::quiet_NaN());
    for (float& value : rows) value = normal(random);
    for (float& value : bias) value = normal(random);
    const std::vector<int32_t> ends = {7, 7, 47};
    std::vector<StoredMatrix> matrices;
    std::vector<char> packed;
    for (int e = 0; e < 3; ++e) {
      matrices.emplace_back(storage, 70, 96, false, random);
      packed.insert(packed.end(), matrices[e].bytes.begin(), matrices[e].bytes.end());
    }
    std::vector<double> expected(50 * 70, 0.0);
    for (int64_t m = 0; m < 47; ++m) {
      const int64_t e = m < 7 ? 0 : 2;
      for (int64_t n = 0; n < 70; ++n) {
        double sum = bias[e * 70 + n];
        for (int64_t k = 0; k < 96; ++k) sum += rows[m * 96 + k] * matrices[e].weights[n * 96 + k];
        expected[m * 70 + n] = sum;
      }
    }
    const Scratch workspace(cpu::grouped_matmul_workspace_bytes(a, isa, 47));
    ShuffledPool pool(2);
    cpu::grouped_matmul(a, {50, rows.data(), packed.data(), ends.data(), bias.data(), y.data()},
                        isa, workspace.data(), pool);
    expect_close(y, expected, tolerance(storage.type, isa));
  });
}

}  // namespace

/// test_packed_experts [PART PARTS]: of the storages, every PARTS-th from PART on.
int main(int count, char** words) {
  const size_t part = count == 3 ? std::stoul(words[1]) : 0;
  const size_t parts = count == 3 ? std::stoul(words[2]) : 1;
  for (size_t i = part; i < std::size(kStorages); i += parts) {
    const Storage& storage = kStorages[i];
    const std::string name = std::string("_") + storage.name;
    std::vector<Case> cases;
    add_shapes(storage, cases);
    add_many_tokens(storage, cases);
    add_forms(storage, cases);
    // With many experts, each is a task of its own; with few, panels are.
    std::vector<PackedLayer> layers;
    for (const int64_t experts : {3, 40}) {
      layers.push_back(random_packed(storage, {67, 4, experts, 96, 64}, {}));
    }
    test_tiles_and_vectors_agree(storage, name);
    for (int isa = 0; isa <= static_cast<int>(cpu::choose_isa()); ++isa) {
      const Isa chosen = static_cast<Isa>(isa);
      const std::string suffix = name + "_" + cpu::isa_name(chosen);
      test_cases(cases, chosen, suffix);
      test_independence(layers, chosen, suffix);
      test_matmul(storage, chosen, suffix);
    }
  }
  return finish();
}
