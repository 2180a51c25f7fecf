#include "routed_tokens.h"

namespace moe_export::ort {

using std::to_string;

RoutedTokens read_routed_tokens(const KernelIo& io, const std::string& prefix,
                                int64_t hidden_size) {
  constexpr auto kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  const std::string inputs = prefix + "_inputs";
  const TensorView x = io.input(0, inputs, "x", {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT});
  require(x.shape.size() == 2 && x.shape[1] == hidden_size, prefix + "_c1", [&] {
    return "x must be [T, H = " + to_string(hidden_size) + "]; found " + to_string(x.shape);
  });
  const TensorView ids =
      io.input(1, inputs, "expert_ids", {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, kInt64});
  require(ids.shape.size() == 2 && ids.shape[0] == x.shape[0] && ids.shape[1] >= 1, prefix + "_c2",
          [&] {
            return "expert_ids must be [T = " + to_string(x.shape[0]) + ", K]; found " +
                   to_string(ids.shape);
          });
  return {x, {ids.data, ids.type == kInt64}, ids.shape};
}

}  // namespace moe_export::ort
