// The host functions of plugins/cuda for ctypes (host_functions.py): attributes as lines of text,
// and scratch that begins as NaN and is no byte longer than asked for.
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <sstream>
#include <string>
#include <unordered_map>

#include "expert_combine.h"
#include "expert_dispatch.h"
#include "grouped_experts.h"
#include "grouped_matmul.h"
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

/// Bytes of NaN, aligned as device memory is.
class Scratch {
 public:
  explicit Scratch(size_t bytes) {
    if (posix_memalign(&data_, 256, bytes > 0 ? bytes : 1) != 0) throw std::bad_alloc();
    std::memset(data_, 0xff, bytes);
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
};

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

MOE_EXPORT_C const char* run_top_k_gating(const char* attributes, cuda::ElementType type,
                                          int64_t tokens, int64_t experts, const void* logits,
                                          const float* bias, int32_t* ids, float* weights) {
  return report([&] {
    cuda::prepare_top_k_gating(type);
    cuda::top_k_gating(read<TopKGatingAttributes>(attributes),
                       {tokens, experts, type, logits, bias, ids, weights}, nullptr);
  });
}

MOE_EXPORT_C const char* run_grouped_experts(const char* attributes, cuda::ElementType type,
                                             int tile_rows, int64_t tokens, int64_t top_k,
                                             const void* x, const void* ids, bool is_int64,
                                             const float* weights, const void* up, const void* down,
                                             const float* up_bias, const float* down_bias,
                                             void* y) {
  return report([&] {
    const auto a = read<GroupedExpertsAttributes>(attributes);
    cuda::prepare_grouped_experts(a, type);
    const Scratch scratch(cuda::grouped_experts_workspace_bytes(a, type, tokens, top_k));
    cuda::grouped_experts(
        a, {tokens, top_k, type, x, {ids, is_int64}, weights, up, down, up_bias, down_bias, y},
        tile_rows, scratch.data(), nullptr);
  });
}

MOE_EXPORT_C const char* run_grouped_matmul(const char* attributes, cuda::ElementType type,
                                            int tile_rows, int64_t num_rows, const void* rows,
                                            const void* weight, const int32_t* ends,
                                            const float* bias, void* y) {
  return report([&] {
    const auto a = read<GroupedMatMulAttributes>(attributes);
    cuda::prepare_grouped_matmul(a, type);
    const Scratch scratch(cuda::grouped_matmul_workspace_bytes(a, type, num_rows));
    cuda::grouped_matmul(a, {num_rows, type, rows, weight, ends, bias, y}, tile_rows,
                         scratch.data(), nullptr);
  });
}

MOE_EXPORT_C const char* run_expert_dispatch(const char* attributes, cuda::ElementType type,
                                             int64_t tokens, int64_t top_k, const void* x,
                                             const void* ids, bool is_int64, void* rows,
                                             int32_t* row_map, int32_t* ends,
                                             int32_t* row_experts) {
  return report([&] {
    const auto a = read<ExpertDispatchAttributes>(attributes);
    cuda::prepare_expert_dispatch(a, type);
    const Scratch scratch(cuda::expert_dispatch_workspace_bytes(a, tokens * top_k));
    cuda::expert_dispatch(
        a, {tokens, top_k, type, x, {ids, is_int64}, rows, row_map, ends, row_experts},
        scratch.data(), nullptr);
  });
}

MOE_EXPORT_C const char* run_expert_combine(const char* attributes, cuda::ElementType type,
                                            int64_t num_rows, int64_t tokens, int64_t top_k,
                                            const void* rows, const int32_t* row_map,
                                            const float* weights, void* y) {
  return report([&] {
    cuda::prepare_expert_combine(type);
    cuda::expert_combine(read<ExpertCombineAttributes>(attributes),
                         {num_rows, tokens, top_k, type, rows, row_map, weights, y}, nullptr);
  });
}

/// Rows of the tiles for a layer, or the one that suits a number of pairs. @returns how many.
MOE_EXPORT_C int list_tiles(const char* attributes, cuda::ElementType type, int* rows) {
  const auto tiles = cuda::grouped_experts_tiles(read<GroupedExpertsAttributes>(attributes), type);
  for (size_t i = 0; i < tiles.size(); ++i) rows[i] = tiles[i];
  return static_cast<int>(tiles.size());
}

MOE_EXPORT_C int64_t packed_bytes(const char* attributes, cuda::ElementType type, bool up) {
  const auto bytes = cuda::packed_expert_bytes(read<GroupedExpertsAttributes>(attributes), type);
  return up ? bytes.up : bytes.down;
}
