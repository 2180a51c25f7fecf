#pragma once
#include <cstdint>
#include <vector>

#include "cuda/element_type.h"

namespace moe_export::test {

/// Values of activations as floats, and floats rounded to activations.
std::vector<float> to_floats(cuda::ElementType element, const void* values, int64_t count);
std::vector<char> from_floats(cuda::ElementType element, const std::vector<float>& values);

/// E matrices [rows, columns] in layout cuda_v1, for weights of the activations' type.
std::vector<char> pack_rows(cuda::ElementType element, const std::vector<float>& weight,
                            int64_t num_experts, int64_t rows, int64_t columns);

/// Such matrices as they were.
std::vector<float> unpack_rows(cuda::ElementType element, const void* packed, int64_t num_experts,
                               int64_t rows, int64_t columns);

/// Bytes of one of them.
int64_t packed_bytes(cuda::ElementType element, int64_t rows, int64_t columns);

}  // namespace moe_export::test
