#pragma once
#include <NvInferRuntime.h>

namespace moe_export::trt {

/// One for the whole process each; never destroyed, since TensorRT may keep them until it ends.
nvinfer1::IPluginCreatorV3One& top_k_gating_creator();
nvinfer1::IPluginCreatorV3One& grouped_experts_creator();
nvinfer1::IPluginCreatorV3One& expert_dispatch_creator();
nvinfer1::IPluginCreatorV3One& grouped_matmul_creator();
nvinfer1::IPluginCreatorV3One& expert_combine_creator();

}  // namespace moe_export::trt
