// The host functions for C callers: moe_export/gpu/c_api.py is one. Pointers are to device memory,
// but for attributes, which are lines "name=value". A function returns null, or what went wrong;
// the text stays until the thread's next call.
#include <algorithm>
#include <cstdint>
#include <exception>
#include <iterator>
#include <sstream>
#include <string>
#include <unordered_map>

#include "expert_combine.h"
#include "expert_dispatch.h"
#include "grouped_experts.h"
#include "grouped_matmul.h"
#include "kernel_catalogue.h"
#include "matmul_tile.h"
#include "top_k_gating.h"

namespace {

using namespace moe_export;

/// Reads "name=value" lines; a visitor of the records in spec/contract.h.
class TextReader {
 public:
  explicit TextReader(const char* text) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
      const size_t equals = line.find('=');
      values_[line.substr(0, equals)] = line.substr(equals + 1);
    }
  }
  void operator()(const char* name, int64_t& value) const { value = std::stoll(values_.at(name)); }
  void operator()(const char* name, bool& value) const { value = values_.at(name) == "1"; }
  void operator()(const char* name, float& value) const { value = std::stof(values_.at(name)); }
  template <class Enum>
  void operator()(const char* name, Enum& value) const {
    for (size_t i = 0; i < std::size(EnumNames<Enum>::kValues); ++i) {
      if (EnumNames<Enum>::kValues[i] == values_.at(name)) value = static_cast<Enum>(i);
    }
  }

 private:
  std::unordered_map<std::string, std::string> values_;
};

template <class Attributes>
Attributes read(const char* text) {
  Attributes attributes;
  attributes.visit(TextReader(text));
  return attributes;
}

template <class Body>
const char* report(Body&& body) {
  thread_local std::string message;
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace

#define MOE_EXPORT_C extern "C" __attribute__((visibility("default")))

MOE_EXPORT_C const char* moe_export_top_k_gating(const char* attributes, cuda::ElementType type,
                                                 int64_t tokens, int64_t experts,
                                                 const void* logits, const float* bias,
                                                 int32_t* ids, float* weights, void* stream) {
  return report([&] {
    cuda::prepare_top_k_gating(type);
    cuda::top_k_gating(read<TopKGatingAttributes>(attributes),
                       {tokens, experts, type, logits, bias, ids, weights}, stream);
  });
}

MOE_EXPORT_C const char* moe_export_grouped_experts(const char* attributes, cuda::ElementType type,
                                                    int64_t tile_rows, int64_t tokens,
                                                    int64_t top_k, const void* x, const void* ids,
                                                    int64_t is_int64, const float* weights,
                                                    const void* up, const void* down,
                                                    const float* up_bias, const float* down_bias,
                                                    void* y, void* workspace, void* stream) {
  return report([&] {
    const auto a = read<GroupedExpertsAttributes>(attributes);
    cuda::prepare_grouped_experts(a, type);
    cuda::grouped_experts(
        a, {tokens, top_k, type, x, {ids, is_int64 != 0}, weights, up, down, up_bias, down_bias, y},
        static_cast<int>(tile_rows), workspace, stream);
  });
}

MOE_EXPORT_C const char* moe_export_grouped_matmul(const char* attributes, cuda::ElementType type,
                                                   int64_t tile_rows, int64_t num_rows,
                                                   const void* rows, const void* weight,
                                                   const int32_t* ends, const float* bias, void* y,
                                                   void* workspace, void* stream) {
  return report([&] {
    const auto a = read<GroupedMatMulAttributes>(attributes);
    cuda::prepare_grouped_matmul(a, type);
    cuda::grouped_matmul(a, {num_rows, type, rows, weight, ends, bias, y},
                         static_cast<int>(tile_rows), workspace, stream);
  });
}

MOE_EXPORT_C const char* moe_export_expert_dispatch(const char* attributes, cuda::ElementType type,
                                                    int64_t tokens, int64_t top_k, const void* x,
                                                    const void* ids, int64_t is_int64, void* rows,
                                                    int32_t* row_map, int32_t* ends,
                                                    int32_t* row_experts, void* workspace,
                                                    void* stream) {
  return report([&] {
    const auto a = read<ExpertDispatchAttributes>(attributes);
    cuda::prepare_expert_dispatch(a, type);
    cuda::expert_dispatch(
        a, {tokens, top_k, type, x, {ids, is_int64 != 0}, rows, row_map, ends, row_experts},
        workspace, stream);
  });
}

MOE_EXPORT_C const char* moe_export_expert_combine(const char* attributes, cuda::ElementType type,
                                                   int64_t num_rows, int64_t tokens, int64_t top_k,
                                                   const void* rows, const int32_t* row_map,
                                                   const float* weights, void* y, void* stream) {
  return report([&] {
    cuda::prepare_expert_combine(type);
    cuda::expert_combine(read<ExpertCombineAttributes>(attributes),
                         {num_rows, tokens, top_k, type, rows, row_map, weights, y}, stream);
  });
}

// Bytes of a call's workspace, of at most so many tokens (rows, slots), by pointer.

MOE_EXPORT_C const char* moe_export_grouped_experts_workspace(const char* attributes,
                                                              cuda::ElementType type,
                                                              int64_t tokens, int64_t top_k,
                                                              int64_t* bytes) {
  return report([&] {
    *bytes = static_cast<int64_t>(cuda::grouped_experts_workspace_bytes(
        read<GroupedExpertsAttributes>(attributes), type, tokens, top_k));
  });
}

MOE_EXPORT_C const char* moe_export_grouped_matmul_workspace(const char* attributes,
                                                             cuda::ElementType type,
                                                             int64_t num_rows, int64_t* bytes) {
  return report([&] {
    *bytes = static_cast<int64_t>(cuda::grouped_matmul_workspace_bytes(
        read<GroupedMatMulAttributes>(attributes), type, num_rows));
  });
}

MOE_EXPORT_C const char* moe_export_expert_dispatch_workspace(const char* attributes, int64_t slots,
                                                              int64_t* bytes) {
  return report([&] {
    *bytes = static_cast<int64_t>(
        cuda::expert_dispatch_workspace_bytes(read<ExpertDispatchAttributes>(attributes), slots));
  });
}

/// The tiles' rows of a layer's products, ascending: `count` of them, at most 8.
MOE_EXPORT_C const char* moe_export_grouped_experts_tiles(const char* attributes,
                                                          cuda::ElementType type, int64_t* rows,
                                                          int64_t* count) {
  return report([&] {
    *count = 0;
    for (const int tile :
         cuda::grouped_experts_tiles(read<GroupedExpertsAttributes>(attributes), type)) {
      rows[(*count)++] = tile;
    }
  });
}

/// What the first product of a layer takes of a device of this capability: threads of a block,
/// bytes of shared memory, registers of a thread (0 where the driver compiles it), rows of the
/// weight per block.
MOE_EXPORT_C const char* moe_export_grouped_experts_kernel(const char* attributes,
                                                           cuda::ElementType type,
                                                           int64_t tile_rows, int64_t capability,
                                                           int64_t* resources) {
  return report([&] {
    const auto a = read<GroupedExpertsAttributes>(attributes);
    const cuda::MatmulForm form = {type, a.weight_type, a.block_size, a.has_zero_point, a.gated};
    const std::string name = cuda::matmul_name(form, static_cast<int>(tile_rows));
    const cuda::CatalogueEntry& entry = cuda::choose_entry(name, static_cast<int>(capability));
    const int64_t found[] = {entry.threads, entry.shared_bytes, entry.registers, entry.outputs};
    std::copy(std::begin(found), std::end(found), resources);
  });
}

/// Compute capability of the current device: 90 is 9.0.
MOE_EXPORT_C const char* moe_export_device_capability(int64_t* capability) {
  return report([&] { *capability = cuda::device_capability(); });
}
