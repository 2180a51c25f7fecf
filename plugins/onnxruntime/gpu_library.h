#pragma once
#include "gpu_ops/op_table.h"

namespace moe_export::ort {

/// The GPU's ops, of libmoe_export_cuda.so beside this library; null where there is none, as in
/// bundles for the CPU. It loads without a GPU.
/// @throws std::runtime_error it is there, but does not load or comes from another build.
const gpu::GpuLibrary* find_gpu_library();

/// One of its ops.
/// @throws std::runtime_error there is none of that type.
const gpu::GpuOp& gpu_op(const char* op_type);

}  // namespace moe_export::ort
