// Tensors as the GPU ops see them, whatever the runtime.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "cuda/element_type.h"
#include "cuda/launch.h"
#include "spec/input_checks.h"

namespace moe_export::gpu {

using cuda::ElementType;

enum class TensorType : int32_t { kFp32, kFp16, kBf16, kInt8, kInt32, kInt64, kOther };

/// What an input or output may be.
enum class TensorKind {
  kElement,  ///< float32, float16 or bfloat16: the type of activations
  kIds,      ///< int32 or int64
  kFloat,    ///< float32
  kInt,      ///< int32
  kPacked,   ///< int8: bytes of packed weights
};

/// The type of activations that `type` is, if it is one.
std::optional<ElementType> element_of(TensorType type);

/// The type of activations with that name, if there is one.
std::optional<ElementType> element_named(const std::string& name);

bool is_allowed(TensorKind kind, TensorType type);

/// Type of an output of a node whose activations have the type `element`.
TensorType type_of(TensorKind output, TensorType element);

/// Throws unless input `name` has one of the types that `kind` allows.
void check_type(const std::string& label, const std::string& name, TensorKind kind,
                TensorType type);

/// A tensor in device memory. Part of the interface between libraries: plain data.
struct TensorRef {
  const void* data;
  const int64_t* sizes;
  int32_t rank;
  TensorType type;

  Shape shape() const { return {sizes, sizes + rank}; }
};

/// What an op runs on; no checks, and nothing is allocated.
class Call {
 public:
  Call(const TensorRef* inputs, void* const* outputs, void* workspace, cuda::Stream stream)
      : inputs_(inputs), outputs_(outputs), workspace_(workspace), stream_(stream) {}

  int64_t size(int input, int axis) const { return inputs_[input].sizes[axis]; }
  ElementType element() const { return *element_of(inputs_[0].type); }
  cuda::ExpertIds ids(int input) const {
    return {inputs_[input].data, inputs_[input].type == TensorType::kInt64};
  }
  template <class T>
  const T* input(int index) const {
    return static_cast<const T*>(inputs_[index].data);
  }
  template <class T>
  T* output(int index) const {
    return static_cast<T*>(outputs_[index]);
  }
  /// Aligned as the host functions need it: there is `kWorkspaceAlignment` more than they asked
  /// for.
  void* workspace() const;
  cuda::Stream stream() const { return stream_; }

 private:
  const TensorRef* inputs_;
  void* const* outputs_;
  void* workspace_;
  cuda::Stream stream_;
};

/// What host functions want, and more than runtimes promise.
inline constexpr size_t kWorkspaceAlignment = 256;

/// Most inputs of an op.
inline constexpr size_t kMostInputs = 7;

}  // namespace moe_export::gpu
