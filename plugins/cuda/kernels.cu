// The CUDA C++ kernels under the names that host functions ask for.
#include "expert_sort.cuh"
#include "row_kernels.cuh"
#include "top_k_gating.cuh"

namespace cuda = moe_export::cuda;

#define MOE_EXPORT_FOR_ELEMENT(name, Element)                                                    \
  extern "C" __global__ void top_k_gating_##name(                                                \
      const __grid_constant__ cuda::TopKGatingCall call) {                                       \
    cuda::top_k_gating<Element>(call);                                                           \
  }                                                                                              \
  extern "C" __global__ void copy_rows_##name(const __grid_constant__ cuda::CopyRowsCall call) { \
    cuda::copy_rows<Element>(call);                                                              \
  }                                                                                              \
  extern "C" __global__ void combine_rows_##name(                                                \
      const __grid_constant__ cuda::ExpertCombineCall call) {                                    \
    cuda::combine_rows<Element, Element>(call);                                                  \
  }

MOE_EXPORT_FOR_ELEMENT(fp32, float)
MOE_EXPORT_FOR_ELEMENT(fp16, __half)
MOE_EXPORT_FOR_ELEMENT(bf16, __nv_bfloat16)

extern "C" __global__ void combine_experts_fp16(
    const __grid_constant__ cuda::ExpertCombineCall call) {
  cuda::combine_rows<float, __half>(call);
}
extern "C" __global__ void combine_experts_bf16(
    const __grid_constant__ cuda::ExpertCombineCall call) {
  cuda::combine_rows<float, __nv_bfloat16>(call);
}

#define MOE_EXPORT_FOR_CALL(name, Call) \
  extern "C" __global__ void name(const __grid_constant__ cuda::Call call) { cuda::name(call); }

MOE_EXPORT_FOR_CALL(sort_few_pairs, ExpertSortCall)
MOE_EXPORT_FOR_CALL(count_pairs, ExpertSortCall)
MOE_EXPORT_FOR_CALL(scan_counts, ExpertSortCall)
MOE_EXPORT_FOR_CALL(place_pairs, ExpertSortCall)
MOE_EXPORT_FOR_CALL(list_row_tiles, TileCall)
MOE_EXPORT_FOR_CALL(name_row_experts, RowExpertsCall)
