#include "grouped_matmul_op.h"

#include "aligned_memory.h"
#include "attribute_reader.h"
#include "grouped_matmul.h"
#include "kernel_io.h"
#include "shape_inference.h"
#include "stored_weights.h"

namespace moe_export::ort {

using std::to_string;

namespace {

void check_group_ends(const TensorView& ends, int64_t num_rows) {
  int64_t begin = 0;
  for (int64_t expert = 0; expert < ends.shape[0]; ++expert) {
    const int64_t end = ends.int32s()[expert];
    require(begin <= end && end <= num_rows, "matmul_c7", [&] {
      return "group_ends must ascend within [0, M = " + to_string(num_rows) + "]; found " +
             to_string(end) + " after " + to_string(begin) + " for expert " + to_string(expert);
    });
    begin = end;
  }
}

}  // namespace

GroupedMatMulKernel::GroupedMatMulKernel(const OrtApi* api, const OrtKernelInfo* info)
    : api_(api), isa_(cpu::choose_isa()) {
  const auto& a = attributes_;
  attributes_.visit(AttributeReader(api, info, "matmul_attributes"));
  check_attributes(a);
  check_stored_weights(a, "matmul_c2");
  check_input_count(api, info, "matmul_inputs", input_names(a));
}

void GroupedMatMulKernel::compute(OrtKernelContext* context) const {
  const auto& a = attributes_;
  const std::string inputs = "matmul_inputs";
  const int64_t packed_bytes = cpu::packed_matrix_bytes(a);
  const KernelIo io(api_, context);
  const TensorView rows = io.floats(0, inputs, "rows");
  const TensorView weight = io.weights(1, inputs, "weight", packed_bytes);
  const TensorView ends = io.input(2, inputs, "group_ends", {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32});
  std::vector<Shape> shapes = {rows.shape, weight.shape, ends.shape};
  TensorView bias;
  if (a.has_bias) {
    bias = io.floats(3, inputs, "bias");
    shapes.push_back(bias.shape);
  }
  check_shapes(a, shapes, packed_bytes);
  const int64_t num_rows = rows.shape[0];
  check_group_ends(ends, num_rows);
  const int64_t num_used_rows = ends.int32s()[a.num_experts - 1];
  const cpu::AlignedMemory workspace(cpu::grouped_matmul_workspace_bytes(a, isa_, num_used_rows));
  SessionThreadPool pool(api_, context);
  cpu::grouped_matmul(a,
                      {num_rows, rows.floats(), weight.data, ends.int32s(), bias.floats(),
                       io.output<float>(0, {num_rows, a.out_features})},
                      isa_, workspace.data(), pool);
}

void GroupedMatMulKernel::infer_shapes(const OrtApi* api, OrtShapeInferContext* context) {
  set_inferred_output(api, context, 0, kOutputTypes[0],
                      {inferred_dimension(api, context, 0, 0),
                       {inferred_attribute(api, context, "out_features"), ""}});
}

}  // namespace moe_export::ort
