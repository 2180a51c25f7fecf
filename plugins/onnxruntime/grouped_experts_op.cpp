#include "grouped_experts_op.h"

#include <memory>
#include <new>

#include "attribute_reader.h"
#include "grouped_experts.h"
#include "shape_inference.h"

namespace moe_export::ort {

using std::to_string;

namespace {

constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;

/// Uninitialized memory for the kernels.
class Workspace {
 public:
  explicit Workspace(size_t size) : data_(operator new(size, kAlignment)) {}
  ~Workspace() { operator delete(data_, kAlignment); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* data() const { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{cpu::kWorkspaceAlignment};
  void* data_;
};

template <class Enum>
std::string name_of(Enum value) {
  return std::string(EnumNames<Enum>::kValues[static_cast<size_t>(value)]);
}

void check_size(const char* name, int64_t value, int64_t minimum) {
  require(value >= minimum, "experts_c6", [&] {
    return std::string(name) + " must be at least " + to_string(minimum) + "; found " +
           to_string(value);
  });
}

}  // namespace

GroupedExpertsKernel::GroupedExpertsKernel(const OrtApi* api, const OrtKernelInfo* info)
    : api_(api), isa_(cpu::choose_isa()) {
  attributes_.visit(AttributeReader(api, info, "experts_attributes"));
  check_attributes();
  std::vector<std::string> names = {"x", "expert_ids", "expert_weights", "up_weight",
                                    "down_weight"};
  if (attributes_.has_bias) names.insert(names.end(), {"up_bias", "down_bias"});
  check_input_count(api, info, "experts_inputs", names);
}

void GroupedExpertsKernel::check_attributes() const {
  const auto& a = attributes_;
  require(a.weight_type == WeightType::kFp32, "experts_c4", [&] {
    return "this library computes weight_type fp32 only; found " + name_of(a.weight_type);
  });
  require(a.weight_layout == WeightLayout::kRowMajor, "experts_c4", [&] {
    return "this library computes weight_layout row_major only; found " + name_of(a.weight_layout);
  });
  check_size("num_experts", a.num_experts, 1);
  check_size("hidden_size", a.hidden_size, 1);
  check_size("intermediate_size", a.intermediate_size, 1);
  check_size("first_expert", a.first_expert, 0);
  require(a.limit >= 0.0f, "experts_c7",
          [&] { return "limit must not be negative; found " + to_string(a.limit); });
  require(a.activation == Activation::kSilu || a.alpha == 1.0f, "experts_c7", [&] {
    return "alpha belongs to silu; found " + to_string(a.alpha) + " with " + name_of(a.activation);
  });
  require(a.gated || (a.limit == 0.0f && a.up_offset == 0.0f), "experts_c8",
          [] { return "limit and up_offset belong to gated experts"; });
  require(a.block_size == 0 && !a.has_zero_point, "experts_c9", [&] {
    return "block_size and has_zero_point belong to quantized weights; weight_type is " +
           name_of(a.weight_type);
  });
}

TensorView GroupedExpertsKernel::constant_input(const KernelIo& io, size_t index,
                                                const std::string& label, const std::string& name,
                                                const Shape& expected) const {
  const TensorView view = io.input(index, "experts_inputs", name, {kFloat});
  require(view.shape == expected, label, [&] {
    return name + " must be " + to_string(expected) + "; found " + to_string(view.shape);
  });
  return view;
}

void GroupedExpertsKernel::compute(OrtKernelContext* context) const {
  const auto& a = attributes_;
  const KernelIo io(api_, context);
  const TensorView x = io.input(0, "experts_inputs", "x", {kFloat});
  require(x.shape.size() == 2 && x.shape[1] == a.hidden_size, "experts_c1", [&] {
    return "x must be [T, H = " + to_string(a.hidden_size) + "]; found " + to_string(x.shape);
  });
  const int64_t num_tokens = x.shape[0];
  const TensorView ids =
      io.input(1, "experts_inputs", "expert_ids",
               {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64});
  require(ids.shape.size() == 2 && ids.shape[0] == num_tokens && ids.shape[1] >= 1, "experts_c2",
          [&] {
            return "expert_ids must be [T = " + to_string(num_tokens) + ", K]; found " +
                   to_string(ids.shape);
          });
  const int64_t top_k = ids.shape[1];
  const TensorView weights = io.input(2, "experts_inputs", "expert_weights", {kFloat});
  require(weights.shape == ids.shape, "experts_c3", [&] {
    return "expert_weights must have expert_ids' shape " + to_string(ids.shape) + "; found " +
           to_string(weights.shape);
  });
  const int64_t up_rows = a.intermediate_size * (a.gated ? 2 : 1);
  const auto up =
      constant_input(io, 3, "experts_c4", "up_weight", {a.num_experts, up_rows, a.hidden_size});
  const auto down = constant_input(io, 4, "experts_c4", "down_weight",
                                   {a.num_experts, a.hidden_size, a.intermediate_size});
  TensorView up_bias, down_bias;
  if (a.has_bias) {
    up_bias = constant_input(io, 5, "experts_c5", "up_bias", {a.num_experts, up_rows});
    down_bias = constant_input(io, 6, "experts_c5", "down_bias", {a.num_experts, a.hidden_size});
  }
  const cpu::ExpertIds expert_ids = {ids.data, ids.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64};
  const cpu::GroupedExpertsTensors tensors = {num_tokens,         top_k,
                                              x.floats(),         expert_ids,
                                              weights.floats(),   up.floats(),
                                              down.floats(),      up_bias.floats(),
                                              down_bias.floats(), io.output<float>(0, x.shape)};
  const Workspace workspace(cpu::grouped_experts_workspace_bytes(a, num_tokens * top_k));
  SessionThreadPool pool(api_, context);
  cpu::grouped_experts(a, tensors, isa_, workspace.data(), pool);
}

void GroupedExpertsKernel::infer_shapes(const OrtApi* api, OrtShapeInferContext* context) {
  set_inferred_output(
      api, context, 0, kFloat,
      {inferred_tokens(api, context), {inferred_attribute(api, context, "hidden_size"), ""}});
}

}  // namespace moe_export::ort
