#include "expert_combine_op.h"

#include "attribute_reader.h"
#include "expert_combine.h"
#include "kernel_io.h"
#include "shape_inference.h"
#include "spec/attribute_checks.h"

namespace moe_export::ort {

using std::to_string;

namespace {

void check_row_map(const TensorView& row_map, int64_t num_rows) {
  const int64_t num_slots = row_map.shape[0] * row_map.shape[1];
  for (int64_t slot = 0; slot < num_slots; ++slot) {
    const int64_t row = row_map.int32s()[slot];
    require(-1 <= row && row < num_rows, "combine_c4", [&] {
      return "row_map must hold -1 or a row in [0, M = " + to_string(num_rows) + "); found " +
             to_string(row);
    });
  }
}

}  // namespace

ExpertCombineKernel::ExpertCombineKernel(const OrtApi* api, const OrtKernelInfo* info)
    : api_(api), isa_(cpu::choose_isa()) {
  attributes_.visit(AttributeReader(api, info, "combine_attributes"));
  check_attributes(attributes_);
  check_input_count(api, info, "combine_inputs", input_names(attributes_));
}

void ExpertCombineKernel::compute(OrtKernelContext* context) const {
  const int64_t width = attributes_.hidden_size;
  const std::string inputs = "combine_inputs";
  const KernelIo io(api_, context);
  const TensorView rows = io.floats(0, inputs, "rows");
  const TensorView row_map = io.input(1, inputs, "row_map", {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32});
  const TensorView weights = io.floats(2, inputs, "expert_weights");
  check_shapes(attributes_, {rows.shape, row_map.shape, weights.shape});
  check_row_map(row_map, rows.shape[0]);
  const int64_t num_tokens = row_map.shape[0];
  SessionThreadPool pool(api_, context);
  cpu::expert_combine(attributes_,
                      {num_tokens, row_map.shape[1], rows.floats(), row_map.int32s(),
                       weights.floats(), io.output<float>(0, {num_tokens, width})},
                      isa_, pool);
}

void ExpertCombineKernel::infer_shapes(const OrtApi* api, OrtShapeInferContext* context) {
  set_inferred_output(api, context, 0, kOutputTypes[0],
                      {inferred_dimension(api, context, 1, 0),
                       {inferred_attribute(api, context, "hidden_size"), ""}});
}

}  // namespace moe_export::ort
