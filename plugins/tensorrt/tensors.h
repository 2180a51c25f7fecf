// TensorRT's tensors in the contract's terms.
#pragma once
#include <NvInferRuntime.h>

#include <optional>
#include <string>
#include <vector>

#include "cuda/element_type.h"
#include "cuda/launch.h"
#include "spec/input_checks.h"

namespace moe_export::trt {

using cuda::ElementType;
using nvinfer1::DataType;

/// What an input or output may be.
enum class TensorKind {
  kElement,  ///< float32, float16 or bfloat16: the type of activations
  kIds,      ///< int32 or int64
  kFloat,    ///< float32
  kInt,      ///< int32
  kPacked,   ///< int8: bytes of packed weights
};

/// The type of activations that `type` is, if it is one.
std::optional<ElementType> element_of(DataType type);

/// The type of activations with that name, if there is one.
std::optional<ElementType> element_named(const std::string& name);

bool is_allowed(TensorKind kind, DataType type);

/// Type of an output of a node whose activations have the type `element`.
DataType type_of(TensorKind output, DataType element);

/// Throws unless input `name` has one of the types that `kind` allows.
void check_type(const std::string& label, const std::string& name, TensorKind kind, DataType type);

Shape shape_of(const nvinfer1::Dims& dims);

/// Sizes that the network fixes; the others are unknown.
Shape shape_of(const nvinfer1::DimsExprs& dims);

/// What `enqueue` is called with; no checks.
class Call {
 public:
  Call(const nvinfer1::PluginTensorDesc* descriptions, const void* const* inputs,
       void* const* outputs, void* workspace, cuda::Stream stream)
      : descriptions_(descriptions),
        inputs_(inputs),
        outputs_(outputs),
        workspace_(workspace),
        stream_(stream) {}

  int64_t size(int input, int axis) const { return descriptions_[input].dims.d[axis]; }
  ElementType element() const { return *element_of(descriptions_[0].type); }
  cuda::ExpertIds ids(int input) const {
    return {inputs_[input], descriptions_[input].type == DataType::kINT64};
  }
  template <class T>
  const T* input(int index) const {
    return static_cast<const T*>(inputs_[index]);
  }
  template <class T>
  T* output(int index) const {
    return static_cast<T*>(outputs_[index]);
  }
  /// Aligned as the host functions need it.
  void* workspace() const;
  cuda::Stream stream() const { return stream_; }

 private:
  const nvinfer1::PluginTensorDesc* descriptions_;
  const void* const* inputs_;
  void* const* outputs_;
  void* workspace_;
  cuda::Stream stream_;
};

/// What host functions want, and more than TensorRT promises.
inline constexpr size_t kWorkspaceAlignment = 256;

}  // namespace moe_export::trt
