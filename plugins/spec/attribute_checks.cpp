#include "attribute_checks.h"

namespace moe_export {

using std::to_string;

namespace {

/// Throws unless the attribute `name` is at least `minimum`.
void check_minimum(const std::string& label, const char* name, int64_t value, int64_t minimum) {
  require(value >= minimum, label, [&] {
    return std::string(name) + " must be at least " + to_string(minimum) + "; found " +
           to_string(value);
  });
}

/// Throws unless blocks and zero points are ones that the weight type has.
/// @param columns of the weights.
template <class Attributes>
void check_blocks(const Attributes& a, std::initializer_list<int64_t> columns,
                  const std::string& label) {
  const int64_t block = a.block_size;
  bool fits = block == 0;
  if (a.weight_type == WeightType::kInt4) fits = block == 32 || block == 64 || block == 128;
  if (a.weight_type == WeightType::kMxfp4) fits = block == 32;
  require(fits, label, [&] {
    return "block_size must be 32, 64 or 128 for int4, 32 for mxfp4 and 0 otherwise; found " +
           to_string(block) + " with " + name_of(a.weight_type);
  });
  require(!a.has_zero_point || a.weight_type == WeightType::kInt4, label, [&] {
    return "has_zero_point belongs to int4; weight_type is " + name_of(a.weight_type);
  });
  for (const int64_t count : columns) {
    require(a.weight_type != WeightType::kMxfp4 || count % block == 0, label,
            [&] { return "mxfp4 needs multiples of 32 columns; found " + to_string(count); });
  }
}

}  // namespace

void check_experts(const TopKGatingAttributes& a, int64_t count) {
  require(a.top_k <= count, "gating_c2", [&] {
    return "top_k = " + to_string(a.top_k) + " exceeds the " + to_string(count) +
           " experts of logits";
  });
  require(count % a.num_groups == 0, "gating_c4", [&] {
    return to_string(count) + " experts do not divide into num_groups = " + to_string(a.num_groups);
  });
  const int64_t group_size = count / a.num_groups;
  require(a.top_groups * group_size >= a.top_k, "gating_c5", [&] {
    return "top_groups = " + to_string(a.top_groups) + " of " + to_string(group_size) +
           " experts hold fewer than top_k = " + to_string(a.top_k);
  });
  const bool scored_by_one = a.num_groups == 1 || a.group_score == GroupScore::kMax;
  require(scored_by_one || group_size >= 2, "gating_c6", [&] {
    return "group_score = top2_sum needs 2 experts per group; found " + to_string(group_size);
  });
}

void check_attributes(const TopKGatingAttributes& a) {
  check_minimum("gating_c2", "top_k", a.top_k, 1);
  check_minimum("gating_c4", "num_groups", a.num_groups, 1);
  require(1 <= a.top_groups && a.top_groups <= a.num_groups, "gating_c5", [&] {
    return "top_groups must lie in [1, num_groups = " + to_string(a.num_groups) + "]; found " +
           to_string(a.top_groups);
  });
  require(a.epsilon >= 0.0f, "gating_c7",
          [&] { return "epsilon must not be negative; found " + to_string(a.epsilon); });
}

void check_attributes(const GroupedExpertsAttributes& a) {
  check_blocks(a, {a.hidden_size, a.intermediate_size}, "experts_c9");
  check_minimum("experts_c6", "num_experts", a.num_experts, 1);
  check_minimum("experts_c6", "hidden_size", a.hidden_size, 1);
  check_minimum("experts_c6", "intermediate_size", a.intermediate_size, 1);
  check_minimum("experts_c6", "first_expert", a.first_expert, 0);
  require(a.limit >= 0.0f, "experts_c7",
          [&] { return "limit must not be negative; found " + to_string(a.limit); });
  require(a.activation == Activation::kSilu || a.alpha == 1.0f, "experts_c7", [&] {
    return "alpha belongs to silu; found " + to_string(a.alpha) + " with " + name_of(a.activation);
  });
  require(a.gated || (a.limit == 0.0f && a.up_offset == 0.0f), "experts_c8",
          [] { return "limit and up_offset belong to gated experts"; });
}

void check_attributes(const ExpertDispatchAttributes& a) {
  check_minimum("dispatch_c3", "num_experts", a.num_experts, 1);
  check_minimum("dispatch_c3", "hidden_size", a.hidden_size, 1);
  check_minimum("dispatch_c3", "first_expert", a.first_expert, 0);
}

void check_attributes(const GroupedMatMulAttributes& a) {
  check_blocks(a, {a.in_features}, "matmul_c6");
  check_minimum("matmul_c5", "num_experts", a.num_experts, 1);
  check_minimum("matmul_c5", "in_features", a.in_features, 1);
  check_minimum("matmul_c5", "out_features", a.out_features, 1);
}

void check_attributes(const ExpertCombineAttributes& a) {
  check_minimum("combine_c5", "hidden_size", a.hidden_size, 1);
}

}  // namespace moe_export
