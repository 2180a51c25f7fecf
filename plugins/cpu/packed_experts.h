#pragma once
#include <cstddef>

#include "grouped_experts.h"

namespace moe_export::cpu {

/// Bytes of scratch that a call with weights in panels needs.
size_t packed_workspace_bytes(const GroupedExpertsAttributes& attributes,
                              const GroupedExpertsPlan& plan);

/// `grouped_experts` with weights in panels.
void run_packed_experts(const GroupedExpertsAttributes& attributes,
                        const GroupedExpertsTensors& tensors, const GroupedExpertsPlan& plan,
                        void* workspace, ThreadPool& pool);

}  // namespace moe_export::cpu
