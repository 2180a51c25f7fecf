#include "op_table.h"

#include <exception>
#include <string>
#include <vector>

#include "expert_combine.h"
#include "expert_dispatch.h"
#include "grouped_experts.h"
#include "grouped_matmul.h"
#include "stream_memory.h"
#include "top_k_gating.h"

namespace moe_export::gpu {
namespace {

template <class Body>
const char* report(Body&& body) noexcept {
  thread_local std::string reason;
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    reason = error.what();
  } catch (...) {
    reason = "an unknown exception";
  }
  return reason.c_str();
}

std::vector<Shape> shapes_of(const TensorRef* inputs, size_t num_inputs) {
  std::vector<Shape> shapes;
  for (size_t i = 0; i < num_inputs; ++i) shapes.push_back(inputs[i].shape());
  return shapes;
}

template <class Op>
struct TableEntry {
  using Attributes = typename Op::Attributes;

  static const Attributes& read(const void* attributes) {
    return *static_cast<const Attributes*>(attributes);
  }

  static const char* check_attributes(const void* attributes) {
    return report([&] { Op::check_computed(read(attributes)); });
  }

  static const char* check_inputs(const void* attributes, const TensorRef* inputs,
                                  size_t num_inputs) {
    return report([&] {
      std::vector<TensorType> types;
      for (size_t i = 0; i < num_inputs; ++i) types.push_back(inputs[i].type);
      check_types<Op>(read(attributes), types);
      Op::check_shapes(read(attributes), shapes_of(inputs, num_inputs), element_of(types[0]));
    });
  }

  static const char* run(const void* attributes, const TensorRef* inputs, size_t num_inputs,
                         void* const* outputs, cuda::Stream stream) {
    return report([&] {
      const ElementType element = *element_of(inputs[0].type);
      const size_t bytes =
          Op::workspace_bytes(read(attributes), element, shapes_of(inputs, num_inputs));
      const StreamMemory scratch(bytes == 0 ? 0 : bytes + kWorkspaceAlignment, stream);
      constexpr int kTileByCall = 0;
      Op::run(read(attributes), Call(inputs, outputs, scratch.data(), stream), kTileByCall);
    });
  }

  static constexpr GpuOp kOp = {Attributes::kOpType, check_attributes, check_inputs, run};
};

}  // namespace
}  // namespace moe_export::gpu

extern "C" __attribute__((visibility("default"))) const moe_export::gpu::GpuLibrary*
moe_export_gpu_library() {
  using namespace moe_export::gpu;
  static constexpr GpuOp kOps[] = {TableEntry<TopKGatingOp>::kOp, TableEntry<GroupedExpertsOp>::kOp,
                                   TableEntry<ExpertDispatchOp>::kOp,
                                   TableEntry<GroupedMatMulOp>::kOp,
                                   TableEntry<ExpertCombineOp>::kOp};
  static constexpr GpuLibrary kLibrary = {MOE_EXPORT_VERSION, kOps, std::size(kOps)};
  return &kLibrary;
}
