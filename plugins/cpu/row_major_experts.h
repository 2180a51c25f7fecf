#pragma once
#include <cstddef>

#include "grouped_experts.h"

namespace moe_export::cpu {

/// Bytes of scratch that a call with float32 weights as the contract lays them out needs.
size_t row_major_workspace_bytes(const GroupedExpertsAttributes& attributes,
                                 const GroupedExpertsPlan& plan);

/// `grouped_experts` with float32 weights as the contract lays them out.
void run_row_major_experts(const GroupedExpertsAttributes& attributes,
                           const GroupedExpertsTensors& tensors, const GroupedExpertsPlan& plan,
                           void* workspace, ThreadPool& pool);

}  // namespace moe_export::cpu
