// tcgen05: matrix products into tensor memory, of 128 lanes and 512 columns of four bytes. An
// address is a lane in its upper half and a column in its lower one.
#pragma once
#include "thread.h"

namespace ptx {

/// tcgen05.alloc: writes the first of `columns` columns to shared memory at `to`.
void tensor_memory_alloc(Thread& thread, int line, uint32_t to, uint32_t columns);
void tensor_memory_dealloc(Thread& thread, int line, uint32_t address, uint32_t columns);

/// How a warp's lanes lie in tensor memory: a lane each, or half of them beside the other half,
/// `split` columns further.
enum class TensorShape { k32x32b, k16x32bx2 };

/// tcgen05.ld and .st: `count` columns of the warp's quarter of the lanes.
void tensor_memory_load(Thread& thread, int line, TensorShape shape, uint32_t address,
                        uint32_t split, int count, uint32_t* to);
void tensor_memory_store(Thread& thread, int line, TensorShape shape, uint32_t address,
                         uint32_t split, int count, const uint32_t* from);

/// tcgen05.mma.kind::f16 of operands in shared memory; `form` is the instruction descriptor.
/// Lands later.
void tensor_memory_mma(Thread& thread, int line, uint32_t d, uint64_t a, uint64_t b, uint32_t form,
                       bool accumulates);

}  // namespace ptx
