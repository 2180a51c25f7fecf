// TensorRT's tensors as the GPU ops' (gpu_ops/tensors.h), and back.
#pragma once
#include <NvInferRuntime.h>

#include <vector>

#include "gpu_ops/tensors.h"

namespace moe_export::trt {

using gpu::ElementType;
using nvinfer1::DataType;

gpu::TensorType tensor_type_of(DataType type);
DataType data_type_of(gpu::TensorType type);

Shape shape_of(const nvinfer1::Dims& dims);

/// Sizes that the network fixes; the others are unknown.
Shape shape_of(const nvinfer1::DimsExprs& dims);

}  // namespace moe_export::trt
