// Memory of the kernel that an instruction touches on behalf of a thread, rather than a load or a
// store. The unit is instrumented for ThreadSanitizer, as kernels are.
#pragma once
#include "thread.h"

namespace ptx {

/// Copies `count` bytes of shared or global memory into the machine's, or the other way.
void read_memory(const unsigned char* from, unsigned char* to, uint32_t count);
void write_memory(const unsigned char* from, unsigned char* to, uint32_t count);

/// Whether `count` bytes are there already. Compilers let threads that hold the same value all
/// write it, which is no error: ThreadSanitizer is not told of stores that change nothing.
bool has_bytes(const void* at, const void* bytes, uint32_t count);

/// Makes `count` bytes NaN, whatever type they are read as.
void spoil_memory(unsigned char* to, uint32_t count);

}  // namespace ptx
