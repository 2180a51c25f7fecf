#include "input_checks.h"

#include "attribute_checks.h"

namespace moe_export {

using std::to_string;

namespace {

/// "H = 32", or "H" where the size is not known.
std::string named_size(const std::string& name, int64_t size) {
  return size == kUnknownSize ? name : name + " = " + to_string(size);
}

bool fits(int64_t found, int64_t expected) {
  return found == expected || found == kUnknownSize || expected == kUnknownSize;
}

bool fits(const Shape& found, const Shape& expected) {
  if (found.size() != expected.size()) return false;
  for (size_t i = 0; i < found.size(); ++i) {
    if (!fits(found[i], expected[i])) return false;
  }
  return true;
}

void check_shape(const std::string& label, const std::string& name, const Shape& found,
                 const Shape& expected) {
  require(fits(found, expected), label,
          [&] { return name + " must be " + to_string(expected) + "; found " + to_string(found); });
}

/// @param form what the tensor must be, "[T, H = 32]".
void check_matrix(const std::string& label, const std::string& name, const Shape& found,
                  int64_t columns, const std::string& form) {
  require(fits(found, {kUnknownSize, columns}), label,
          [&] { return name + " must be " + form + "; found " + to_string(found); });
}

/// Tokens `x` and the experts that they chose: what `GroupedExperts` and `ExpertDispatch` take.
void check_routed_tokens(const std::string& prefix, const Shape& x, const Shape& ids,
                         int64_t hidden_size) {
  check_matrix(prefix + "_c1", "x", x, hidden_size, "[T, H = " + to_string(hidden_size) + "]");
  require(fits(ids, {x[0], kUnknownSize}) && ids[1] != 0, prefix + "_c2", [&] {
    return "expert_ids must be [" + named_size("T", x[0]) + ", K]; found " + to_string(ids);
  });
}

void check_weight(const std::string& label, const std::string& name, const Shape& found,
                  const Shape& row_major, int64_t packed_bytes) {
  check_shape(label, name, found,
              packed_bytes == 0 ? row_major : Shape{row_major[0], packed_bytes});
}

}  // namespace

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += i > 0 ? ", " : "";
    text += shape[i] == kUnknownSize ? "?" : to_string(shape[i]);
  }
  return text + "]";
}

std::vector<std::string> input_names(const TopKGatingAttributes& a) {
  if (a.has_selection_bias) return {"logits", "selection_bias"};
  return {"logits"};
}

std::vector<std::string> input_names(const GroupedExpertsAttributes& a) {
  std::vector<std::string> names = {"x", "expert_ids", "expert_weights", "up_weight",
                                    "down_weight"};
  if (a.has_bias) names.insert(names.end(), {"up_bias", "down_bias"});
  return names;
}

std::vector<std::string> input_names(const ExpertDispatchAttributes&) {
  return {"x", "expert_ids"};
}

std::vector<std::string> input_names(const GroupedMatMulAttributes& a) {
  std::vector<std::string> names = {"rows", "weight", "group_ends"};
  if (a.has_bias) names.push_back("bias");
  return names;
}

std::vector<std::string> input_names(const ExpertCombineAttributes&) {
  return {"rows", "row_map", "expert_weights"};
}

const char* label_prefix(const TopKGatingAttributes&) { return "gating"; }
const char* label_prefix(const GroupedExpertsAttributes&) { return "experts"; }
const char* label_prefix(const ExpertDispatchAttributes&) { return "dispatch"; }
const char* label_prefix(const GroupedMatMulAttributes&) { return "matmul"; }
const char* label_prefix(const ExpertCombineAttributes&) { return "combine"; }

std::vector<Shape> output_shapes(const TopKGatingAttributes& a, const std::vector<Shape>& inputs) {
  return {{inputs[0][0], a.top_k}, {inputs[0][0], a.top_k}};
}

std::vector<Shape> output_shapes(const GroupedExpertsAttributes&,
                                 const std::vector<Shape>& inputs) {
  return {inputs[0]};
}

std::vector<Shape> output_shapes(const ExpertDispatchAttributes& a,
                                 const std::vector<Shape>& inputs) {
  const Shape& ids = inputs[1];
  const int64_t num_slots = ids[0] * ids[1];
  return {{num_slots, a.hidden_size}, ids, {a.num_experts}, {num_slots}};
}

std::vector<Shape> output_shapes(const GroupedMatMulAttributes& a,
                                 const std::vector<Shape>& inputs) {
  return {{inputs[0][0], a.out_features}};
}

std::vector<Shape> output_shapes(const ExpertCombineAttributes& a,
                                 const std::vector<Shape>& inputs) {
  return {{inputs[1][0], a.hidden_size}};
}

void check_input_count(const std::string& label, const std::vector<std::string>& names,
                       size_t count) {
  require(count == names.size(), label, [&] {
    std::string list;
    for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
    return "the node takes " + list + " without gaps; found " + to_string(count) + " inputs";
  });
}

void check_shapes(const TopKGatingAttributes& a, const std::vector<Shape>& inputs) {
  const Shape& logits = inputs[0];
  check_matrix("gating_c1", "logits", logits, kUnknownSize, "[T, E]");
  const int64_t num_experts = logits[1];
  if (num_experts != kUnknownSize) check_experts(a, num_experts);
  if (!a.has_selection_bias) return;
  require(fits(inputs[1], {num_experts}), "gating_c3", [&] {
    return "selection_bias must be [" + named_size("E", num_experts) + "]; found " +
           to_string(inputs[1]);
  });
}

void check_shapes(const GroupedExpertsAttributes& a, const std::vector<Shape>& inputs,
                  int64_t up_bytes, int64_t down_bytes) {
  const Shape &ids = inputs[1], &weights = inputs[2];
  check_routed_tokens("experts", inputs[0], ids, a.hidden_size);
  require(fits(weights, ids), "experts_c3", [&] {
    return "expert_weights must have expert_ids' shape " + to_string(ids) + "; found " +
           to_string(weights);
  });
  const int64_t up_rows = a.intermediate_size * (a.gated ? 2 : 1);
  check_weight("experts_c4", "up_weight", inputs[3], {a.num_experts, up_rows, a.hidden_size},
               up_bytes);
  check_weight("experts_c4", "down_weight", inputs[4],
               {a.num_experts, a.hidden_size, a.intermediate_size}, down_bytes);
  if (!a.has_bias) return;
  check_shape("experts_c5", "up_bias", inputs[5], {a.num_experts, up_rows});
  check_shape("experts_c5", "down_bias", inputs[6], {a.num_experts, a.hidden_size});
}

void check_shapes(const ExpertDispatchAttributes& a, const std::vector<Shape>& inputs) {
  check_routed_tokens("dispatch", inputs[0], inputs[1], a.hidden_size);
}

void check_shapes(const GroupedMatMulAttributes& a, const std::vector<Shape>& inputs,
                  int64_t weight_bytes) {
  check_matrix("matmul_c1", "rows", inputs[0], a.in_features,
               "[M, in_features = " + to_string(a.in_features) + "]");
  check_weight("matmul_c2", "weight", inputs[1], {a.num_experts, a.out_features, a.in_features},
               weight_bytes);
  require(fits(inputs[2], {a.num_experts}), "matmul_c3", [&] {
    return "group_ends must be [E = " + to_string(a.num_experts) + "]; found " +
           to_string(inputs[2]);
  });
  if (a.has_bias) check_shape("matmul_c4", "bias", inputs[3], {a.num_experts, a.out_features});
}

void check_shapes(const ExpertCombineAttributes& a, const std::vector<Shape>& inputs) {
  const Shape &row_map = inputs[1], &weights = inputs[2];
  check_matrix("combine_c1", "rows", inputs[0], a.hidden_size,
               "[M, N = " + to_string(a.hidden_size) + "]");
  require(row_map.size() == 2 && row_map[1] != 0, "combine_c2",
          [&] { return "row_map must be [T, K]; found " + to_string(row_map); });
  require(fits(weights, row_map), "combine_c3", [&] {
    return "expert_weights must have row_map's shape " + to_string(row_map) + "; found " +
           to_string(weights);
  });
}

}  // namespace moe_export
