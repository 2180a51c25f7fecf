#pragma once
#include <NvInferRuntime.h>

#include <initializer_list>

namespace moe_export::trt {

using nvinfer1::DimsExprs;

inline void set_shape(DimsExprs& output,
                      std::initializer_list<const nvinfer1::IDimensionExpr*> sizes) {
  output.nbDims = 0;
  for (const auto* const size : sizes) output.d[output.nbDims++] = size;
}

}  // namespace moe_export::trt
