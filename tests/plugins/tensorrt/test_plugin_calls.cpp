// What plugins compute, through all that TensorRT calls: the contract in double is the reference.
// The host functions are those of host_functions.cpp, or the GPU library's own over the PTX seam.
#include <cmath>
#include <random>

#include "elements.h"
#include "expert_layer.h"
#include "plugin_node.h"

using namespace moe_export;
using namespace moe_export::test;
using cuda::ElementType;

namespace {

constexpr ElementType kElements[] = {ElementType::kFp32, ElementType::kFp16, ElementType::kBf16};

DataType type_of(ElementType element) {
  constexpr DataType kTypes[] = {DataType::kFLOAT, DataType::kHALF, DataType::kBF16};
  return kTypes[static_cast<size_t>(element)];
}

/// Inputs are rounded before: what is left is the order of sums in float32, and in half precision
/// the rounding of what an expert has inside and of the result, some units in the last place.
double tolerance_of(ElementType element) {
  constexpr double kTolerances[] = {1e-5, 2e-3, 1.6e-2};
  return kTolerances[static_cast<size_t>(element)];
}

std::vector<float> rounded(ElementType element, const std::vector<float>& values) {
  return to_floats(element, from_floats(element, values).data(),
                   static_cast<int64_t>(values.size()));
}

Tensor elements(ElementType element, std::vector<int64_t> shape, const std::vector<float>& values) {
  return {type_of(element), std::move(shape), from_floats(element, values)};
}

Tensor floats(std::vector<int64_t> shape, const std::vector<float>& values) {
  return make_tensor(DataType::kFLOAT, std::move(shape), values);
}

Tensor ids_of(std::vector<int64_t> shape, const std::vector<int64_t>& ids, DataType type) {
  if (type == DataType::kINT64) return make_tensor(type, std::move(shape), ids);
  return make_tensor(type, std::move(shape), std::vector<int32_t>(ids.begin(), ids.end()));
}

std::vector<float> results(ElementType element, const Tensor& tensor) {
  return to_floats(element, tensor.bytes.data(), count_of(tensor.shape));
}

std::string suffix(ElementType element) { return "_" + std::string(cuda::name_of(element)); }

WeightType weights_of(ElementType element) {
  constexpr WeightType kTypes[] = {WeightType::kFp32, WeightType::kFp16, WeightType::kBf16};
  return kTypes[static_cast<size_t>(element)];
}

/// A random layer whose numbers `element` holds exactly.
Layer layer_of(ElementType element, int64_t num_tokens, bool has_bias) {
  GroupedExpertsAttributes a = attributes_of({num_tokens, 3, 4, 20, 12});
  a.has_bias = has_bias;
  a.first_expert = 2;
  a.weight_type = weights_of(element);
  a.weight_layout = WeightLayout::kCudaV1;
  Layer layer = random_layer(a, num_tokens, 3);
  for (auto* const values : {&layer.x, &layer.up, &layer.down}) *values = rounded(element, *values);
  return layer;
}

std::vector<Tensor> tensors_of(const Layer& layer, ElementType element, DataType ids) {
  const auto& a = layer.attributes;
  const int64_t e = a.num_experts, h = a.hidden_size, i = a.intermediate_size;
  const int64_t rows = i * (a.gated ? 2 : 1);
  const std::vector<int64_t> slots = {layer.num_tokens, layer.top_k};
  std::vector<Tensor> tensors = {elements(element, {layer.num_tokens, h}, layer.x),
                                 ids_of(slots, layer.ids, ids), floats(slots, layer.weights),
                                 make_tensor(DataType::kINT8, {e, packed_bytes(element, rows, h)},
                                             pack_rows(element, layer.up, e, rows, h)),
                                 make_tensor(DataType::kINT8, {e, packed_bytes(element, h, i)},
                                             pack_rows(element, layer.down, e, h, i))};
  if (a.has_bias) {
    tensors.push_back(floats({e, rows}, layer.up_bias));
    tensors.push_back(floats({e, h}, layer.down_bias));
  }
  return tensors;
}

void test_grouped_experts() {
  for (const ElementType element : kElements) {
    for (const DataType ids : {DataType::kINT32, DataType::kINT64}) {
      for (const int64_t num_tokens : {0, 1, 7}) {
        const bool has_bias = num_tokens != 1;
        run_case("experts_of_" + std::to_string(num_tokens) + suffix(element), [&] {
          const Layer layer = layer_of(element, num_tokens, has_bias);
          const auto y = run(create(layer.attributes), tensors_of(layer, element, ids));
          expect_close(results(element, y[0]), reference(layer), tolerance_of(element));
        });
      }
    }
  }
}

void test_grouped_matmul() {
  for (const ElementType element : kElements) {
    for (const int64_t num_rows : {0, 9}) {
      run_case("matmul_of_" + std::to_string(num_rows) + suffix(element), [&] {
        GroupedMatMulAttributes a = {
            3, 18, 5, true, weights_of(element), 0, false, WeightLayout::kCudaV1};
        auto draw = [random = std::mt19937(5), &element](int64_t count) mutable {
          std::vector<float> values(count);
          for (float& value : values) value = std::normal_distribution<float>()(random);
          return rounded(element, values);
        };
        const auto rows = draw(num_rows * 18), weight = draw(3 * 5 * 18), bias = draw(3 * 5);
        const std::vector<int32_t> ends =
            num_rows == 0 ? std::vector<int32_t>{0, 0, 0} : std::vector<int32_t>{4, 4, 7};
        std::vector<double> expected(num_rows * 5, 0.0);
        for (int64_t row = 0; row < ends[2]; ++row) {
          const int64_t e = row < 4 ? 0 : 2;
          for (int64_t out = 0; out < 5; ++out) {
            double sum = bias[e * 5 + out];
            for (int64_t in = 0; in < 18; ++in) {
              sum += static_cast<double>(weight[(e * 5 + out) * 18 + in]) * rows[row * 18 + in];
            }
            expected[row * 5 + out] = sum;
          }
        }
        const auto y =
            run(create(a), {elements(element, {num_rows, 18}, rows),
                            make_tensor(DataType::kINT8, {3, packed_bytes(element, 5, 18)},
                                        pack_rows(element, weight, 3, 5, 18)),
                            make_tensor(DataType::kINT32, {3}, ends), floats({3, 5}, bias)});
        expect_close(results(element, y[0]), expected, tolerance_of(element));
      });
    }
  }
}

void test_dispatch_and_combine() {
  for (const ElementType element : kElements) {
    for (const DataType ids : {DataType::kINT32, DataType::kINT64}) {
      run_case("dispatch_and_combine" + suffix(element), [&] {
        const std::vector<float> x = {1, 2, 3, 4, 5, 6};
        const auto rows =
            run(create(ExpertDispatchAttributes{2, 2, 5}),
                {elements(element, {3, 2}, x), ids_of({3, 2}, {6, 5, 5, 9, -1, 6}, ids)});
        expect(results(element, rows[0]) == std::vector<float>{1, 2, 3, 4, 1, 2, 5, 6, 0, 0, 0, 0},
               "rows");
        expect(rows[1].values<int32_t>() == std::vector<int32_t>{2, 0, 1, -1, -1, 3}, "row_map");
        expect(rows[2].values<int32_t>() == std::vector<int32_t>{2, 4}, "group_ends");
        expect(rows[3].values<int32_t>() == std::vector<int32_t>{0, 0, 1, 1, 1, 1}, "row_experts");
        const auto y = run(create(ExpertCombineAttributes{2}),
                           {rows[0], rows[1], floats({3, 2}, {2, 1, 0.5, 9, 9, -1})});
        expect(results(element, y[0]) == std::vector<float>{3, 6, 1.5, 2, -5, -6}, "y");
      });
    }
  }
  run_case("dispatch_and_combine_of_no_tokens", [] {
    const auto rows = run(create(ExpertDispatchAttributes{2, 2, 5}),
                          {floats({0, 2}, {}), ids_of({0, 4}, {}, DataType::kINT64)});
    expect(rows[0].shape == std::vector<int64_t>{0, 2}, "no rows");
    expect(rows[2].values<int32_t>() == std::vector<int32_t>{0, 0}, "group_ends");
    run(create(ExpertCombineAttributes{2}), {rows[0], rows[1], floats({0, 4}, {})});
  });
}

void test_gating() {
  for (const ElementType element : kElements) {
    run_case("gating" + suffix(element), [&] {
      TopKGatingAttributes a;
      a.top_k = 2;
      a.has_selection_bias = true;
      a.score_function = ScoreFunction::kIdentity;
      const auto out =
          run(create(a), {elements(element, {2, 3}, {1, 3, 2, 4, -1, 4}), floats({3}, {5, 0, 0})});
      expect(out[0].values<int32_t>() == std::vector<int32_t>{0, 1, 0, 2}, "ids");
      expect(out[1].values<float>() == std::vector<float>{1, 3, 4, 4}, "weights");
    });
  }
  run_case("gating_of_no_tokens", [] {
    TopKGatingAttributes a;
    a.top_k = 2;
    const auto out = run(create(a), {floats({0, 3}, {})});
    expect(out[0].shape == std::vector<int64_t>{0, 2}, "shape");
  });
}

}  // namespace

int main() {
  test_gating();
  test_grouped_experts();
  test_dispatch_and_combine();
  test_grouped_matmul();
  return finish();
}
