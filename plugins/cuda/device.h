// What the CUDA C++ kernels share: lanes, element types, sums over a warp.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace moe_export::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = ~0u;

inline __device__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
inline __device__ int warp() { return static_cast<int>(threadIdx.x) / kWarp; }

inline __device__ float to_float(float value) { return value; }
inline __device__ float to_float(__half value) { return __half2float(value); }
inline __device__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

inline __device__ void from_float(float value, float& to) { to = value; }
inline __device__ void from_float(float value, __half& to) { to = __float2half(value); }
inline __device__ void from_float(float value, __nv_bfloat16& to) { to = __float2bfloat16(value); }

/// combine(.., ..) of every lane's value, the same in all lanes.
template <class Value, class Combine>
inline __device__ Value reduce_warp(Value value, Combine&& combine) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, distance));
  }
  return value;
}
inline __device__ float warp_max(float value) {
  return reduce_warp(value, [](float a, float b) { return fmaxf(a, b); });
}
inline __device__ float warp_sum(float value) {
  return reduce_warp(value, [](float a, float b) { return a + b; });
}

/// Shared memory of the size that the launch asks for.
template <class Value>
inline __device__ Value* shared_memory() {
  extern __shared__ __align__(16) unsigned char moe_export_shared[];
  return reinterpret_cast<Value*>(moe_export_shared);
}

}  // namespace moe_export::cuda
