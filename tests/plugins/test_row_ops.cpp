#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "expert_combine.h"
#include "expert_dispatch.h"
#include "grouped_matmul.h"
#include "scratch.h"
#include "shuffled_pool.h"

using namespace moe_export;
using cpu::Isa;
using test::expect;
using test::run_case;

namespace {

using Floats = std::vector<float>;
using Rows = std::vector<int32_t>;

// float32 sums of up to a few hundred products of size 1, relative to the largest output.
constexpr double kTolerance = 1e-5;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

Floats draw(int64_t count) {
  static std::mt19937 random(11);
  std::normal_distribution<float> normal;
  Floats values(count);
  for (float& value : values) value = normal(random);
  return values;
}

/// Calls `body(pool)` with a serial pool and with several threads.
template <class Body>
void with_pools(Body&& body) {
  cpu::SerialPool serial;
  body(serial);
  for (int num_threads = 2; num_threads <= 4; ++num_threads) {
    test::ShuffledPool pool(num_threads);
    body(pool);
  }
}

struct Dispatched {
  Floats rows;
  Rows row_map, group_ends, row_experts;

  bool operator==(const Dispatched& other) const {
    return rows == other.rows && row_map == other.row_map && group_ends == other.group_ends &&
           row_experts == other.row_experts;
  }
};

Dispatched dispatch(const ExpertDispatchAttributes& attributes, const Floats& x,
                    const std::vector<int64_t>& ids, int64_t top_k, cpu::ThreadPool& pool) {
  const int64_t num_slots = static_cast<int64_t>(ids.size());
  Dispatched out = {Floats(num_slots * attributes.hidden_size, kNan), Rows(num_slots, -7),
                    Rows(attributes.num_experts, -7), Rows(num_slots, -7)};
  cpu::expert_dispatch(attributes,
                       {num_slots / top_k,
                        top_k,
                        x.data(),
                        {ids.data(), true},
                        out.rows.data(),
                        out.row_map.data(),
                        out.group_ends.data(),
                        out.row_experts.data()},
                       pool);
  return out;
}

void test_dispatch() {
  run_case("dispatch_sorts_by_expert_and_then_by_slot", [] {
    const ExpertDispatchAttributes attributes = {3, 2, 5};
    const Floats x = {1, 2, 3, 4, 5, 6};
    const std::vector<int64_t> ids = {7, 5, std::numeric_limits<int64_t>::min(), 7, 5, 8};
    const Dispatched expected = {
        {1, 2, 5, 6, 1, 2, 3, 4, 0, 0, 0, 0}, {2, 0, -1, 3, 1, -1}, {2, 2, 4}, {0, 0, 2, 2, 2, 2}};
    with_pools([&](cpu::ThreadPool& pool) {
      expect(dispatch(attributes, x, ids, 2, pool) == expected, "rows, map, ends or experts");
    });
  });
  run_case("dispatch_of_no_tokens", [] {
    cpu::SerialPool pool;
    const Dispatched out = dispatch({3, 2, 0}, {}, {}, 2, pool);
    expect(out == Dispatched{{}, {}, {0, 0, 0}, {}}, "ends are zero");
  });
  run_case("dispatch_without_an_id_in_range", [] {
    cpu::SerialPool pool;
    const Dispatched out = dispatch({2, 1, 0}, {kNan, kInfinity}, {-1, 2, 3, -5}, 2, pool);
    expect(out == Dispatched{{0, 0, 0, 0}, {-1, -1, -1, -1}, {0, 0}, {1, 1, 1, 1}}, "no rows");
  });
  run_case("dispatch_copies_what_it_reads_from_a_large_batch", [] {
    const int64_t num_tokens = 500, top_k = 8, width = 300;
    const ExpertDispatchAttributes attributes = {8, width, 0};
    const Floats x = draw(num_tokens * width);
    std::vector<int64_t> ids(num_tokens * top_k);
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int64_t>(i * 7 % 11) - 1;
    with_pools([&](cpu::ThreadPool& pool) {
      const Dispatched out = dispatch(attributes, x, ids, top_k, pool);
      for (size_t slot = 0; slot < ids.size(); ++slot) {
        const int32_t row = out.row_map[slot];
        expect((row >= 0) == (0 <= ids[slot] && ids[slot] < 8), "rows of ids in range");
        if (row < 0) continue;
        expect(out.row_experts[row] == ids[slot], "row_experts");
        expect(std::equal(&out.rows[row * width], &out.rows[(row + 1) * width],
                          &x[static_cast<int64_t>(slot) / top_k * width]),
               "row of slot " + std::to_string(slot));
      }
    });
  });
}

struct Product {
  GroupedMatMulAttributes attributes;
  Floats rows, weight, bias;
  Rows group_ends;

  int64_t num_rows() const { return static_cast<int64_t>(rows.size()) / attributes.in_features; }
};

Product random_product(int64_t in, int64_t out, const Rows& group_ends, int64_t num_rows,
                       bool has_bias) {
  GroupedMatMulAttributes attributes;
  attributes.num_experts = static_cast<int64_t>(group_ends.size());
  attributes.in_features = in;
  attributes.out_features = out;
  attributes.has_bias = has_bias;
  return {attributes, draw(num_rows * in), draw(attributes.num_experts * out * in),
          draw(has_bias ? attributes.num_experts * out : 0), group_ends};
}

Floats multiply(const Product& product, Isa isa, cpu::ThreadPool& pool) {
  const auto& a = product.attributes;
  Floats y(product.num_rows() * a.out_features, kNan);
  const test::Scratch workspace(
      cpu::grouped_matmul_workspace_bytes(a, isa, product.group_ends.back()));
  cpu::grouped_matmul(
      a,
      {product.num_rows(), product.rows.data(), product.weight.data(), product.group_ends.data(),
       a.has_bias ? product.bias.data() : nullptr, y.data()},
      isa, workspace.data(), pool);
  return y;
}

Floats multiply(const Product& product, Isa isa) {
  cpu::SerialPool pool;
  return multiply(product, isa, pool);
}

/// The contract as loops in double.
std::vector<double> multiply_in_double(const Product& product) {
  const int64_t in = product.attributes.in_features, out = product.attributes.out_features;
  std::vector<double> y(product.num_rows() * out, 0.0);
  int64_t row = 0;
  for (int64_t e = 0; e < product.attributes.num_experts; ++e) {
    for (; row < product.group_ends[e]; ++row) {
      for (int64_t c = 0; c < out; ++c) {
        double sum = product.bias.empty() ? 0.0 : product.bias[e * out + c];
        for (int64_t k = 0; k < in; ++k) {
          sum += static_cast<double>(product.rows[row * in + k]) *
                 product.weight[(e * out + c) * in + k];
        }
        y[row * out + c] = sum;
      }
    }
  }
  return y;
}

void expect_close(const Floats& found, const std::vector<double>& expected) {
  double scale = 1.0;
  for (const double value : expected) scale = std::max(scale, std::abs(value));
  expect(found.size() == expected.size(), "size");
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = std::abs(found[i] - expected[i]) / scale;
    expect(error <= kTolerance, "error " + std::to_string(error) + " at " + std::to_string(i));
  }
}

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void test_product_shapes(Isa isa, const std::string& suffix) {
  for (const auto& [in, out] : {std::pair<int64_t, int64_t>{1, 1}, {33, 17}, {16, 64}, {130, 7}}) {
    for (const bool has_bias : {false, true}) {
      for (const Rows& ends : {Rows{0, 0}, Rows{1, 1}, Rows{0, 5}, Rows{3, 3, 40}, Rows{43}}) {
        run_case("matmul_c1_width_" + std::to_string(in) + suffix, [&, in = in, out = out] {
          const Product product = random_product(in, out, ends, ends.back() + 3, has_bias);
          expect_close(multiply(product, isa), multiply_in_double(product));
        });
      }
    }
  }
  run_case("matmul_of_no_rows" + suffix,
           [&] { expect(multiply(random_product(3, 4, {0, 0}, 0, true), isa).empty(), "empty"); });
}

/// The product of one row by expert `e`.
Product alone(const Product& product, int64_t row, int64_t e) {
  const int64_t in = product.attributes.in_features;
  Product one = product;
  one.rows.assign(product.rows.begin() + row * in, product.rows.begin() + (row + 1) * in);
  for (int64_t i = 0; i < product.attributes.num_experts; ++i) one.group_ends[i] = i >= e;
  return one;
}

void test_product_independence(Isa isa, const std::string& suffix) {
  const int64_t in = 75, out = 2100, num_rows = 50;  // wide enough for several blocks
  const Product product = random_product(in, out, {13, 13, 44}, num_rows, true);
  const Floats y = multiply(product, isa);
  run_case("matmul_same_bits_for_any_threads" + suffix, [&] {
    with_pools([&](cpu::ThreadPool& pool) {
      expect(same_bits(multiply(product, isa, pool), y), "bits differ");
    });
  });
  run_case("matmul_same_bits_alone_and_in_a_batch" + suffix, [&] {
    for (int64_t row = 0; row < 44; ++row) {
      const Floats one(y.begin() + row * out, y.begin() + (row + 1) * out);
      const Floats found = multiply(alone(product, row, row < 13 ? 0 : 2), isa);
      expect(same_bits(found, one), "row " + std::to_string(row));
    }
  });
  for (const float poison : {kNan, kInfinity}) {
    run_case("matmul_poison_stays_in_its_row" + suffix, [&] {
      Product poisoned = product;
      std::fill_n(poisoned.rows.begin() + 20 * in, in, poison);
      std::fill(poisoned.rows.begin() + 44 * in, poisoned.rows.end(), poison);  // unused rows
      std::fill_n(poisoned.weight.begin() + out * in, out * in, poison);        // idle expert 1
      Floats found = multiply(poisoned, isa);
      expect(!std::isfinite(found[20 * out]), "the poison must show");
      std::copy_n(y.begin() + 20 * out, out, found.begin() + 20 * out);
      expect(same_bits(found, y), "another row changed");
    });
  }
}

Floats combine(const Floats& rows, int64_t width, const Rows& row_map, const Floats& weights,
               int64_t top_k, Isa isa, cpu::ThreadPool& pool) {
  const int64_t num_tokens = static_cast<int64_t>(row_map.size()) / top_k;
  Floats y(num_tokens * width, kNan);
  cpu::expert_combine({width},
                      {num_tokens, top_k, rows.data(), row_map.data(), weights.data(), y.data()},
                      isa, pool);
  return y;
}

void test_combine(Isa isa, const std::string& suffix) {
  run_case("combine_adds_in_order_of_k" + suffix, [&] {
    with_pools([&](cpu::ThreadPool& pool) {
      const Floats y = combine({1e8f, 1, -1e8f}, 1, {0, 1, 2, 0, 2, 1, -1, -1, -1},
                               {1, 1, 1, 1, 1, 1, kNan, kNan, kNan}, 3, isa, pool);
      expect(y == Floats{0, 1, 0}, "order of k, and nothing for -1");
    });
  });
  run_case("combine_of_no_tokens" + suffix, [&] {
    cpu::SerialPool pool;
    expect(combine({}, 4, {}, {}, 2, isa, pool).empty(), "empty");
  });
  run_case("combine_same_bits_for_any_threads" + suffix, [&] {
    const int64_t num_tokens = 300, top_k = 5, width = 77;
    const Floats rows = draw(40 * width), weights = draw(num_tokens * top_k);
    Rows row_map(num_tokens * top_k);
    for (size_t i = 0; i < row_map.size(); ++i) row_map[i] = static_cast<int32_t>(i * 13 % 41) - 1;
    std::vector<double> expected(num_tokens * width, 0.0);
    for (size_t slot = 0; slot < row_map.size(); ++slot) {
      for (int64_t i = 0; row_map[slot] >= 0 && i < width; ++i) {
        expected[static_cast<int64_t>(slot) / top_k * width + i] +=
            static_cast<double>(weights[slot]) * rows[row_map[slot] * width + i];
      }
    }
    cpu::SerialPool serial;
    const Floats y = combine(rows, width, row_map, weights, top_k, isa, serial);
    expect_close(y, expected);
    with_pools([&](cpu::ThreadPool& pool) {
      expect(same_bits(combine(rows, width, row_map, weights, top_k, isa, pool), y), "bits");
    });
  });
}

}  // namespace

int main() {
  test_dispatch();
  for (int isa = 0; isa <= static_cast<int>(cpu::choose_isa()); ++isa) {
    for (const auto test : {test_product_shapes, test_product_independence, test_combine}) {
      test(static_cast<Isa>(isa), std::string("_") + cpu::isa_name(static_cast<Isa>(isa)));
    }
  }
  return test::finish();
}
