// Matrix instructions of a warp and of four warps.
#pragma once
#include "thread.h"

namespace ptx {

/// What four bytes of a register hold: 4 int8, 4 fp8, 2 of 16 bits or one tf32.
enum class Element { s8, u8, e4m3, e5m2, f16, bf16, tf32 };

/// mma.sync.m16n8: d[16, 8] = a[16, k] · b[k, 8] + c, with `num_a` registers of a per lane and half
/// as many of b. `Sum` is f32 (4 registers of c), f16 (2) or s32 (4).
enum class Sum { f32, f16, s32 };
void mma(Thread& thread, int line, Element a_type, Element b_type, Sum sum, int num_a,
         const uint32_t* a, const uint32_t* b, const uint32_t* c, uint32_t* d);

/// ldmatrix: `count` matrices [8, 8] of 16 bits; lane 8 * i + r holds the offset of row r of
/// matrix i.
void ldmatrix(Thread& thread, int line, bool transposed, int count, uint32_t offset, uint32_t* to);
/// stmatrix: the same the other way.
void stmatrix(Thread& thread, int line, bool transposed, int count, uint32_t offset,
              const uint32_t* from);

/// Operands of wgmma: shared memory by descriptors, or a by registers.
struct GroupProduct {
  Element element;
  int columns;       ///< n, of m64nNk(32 bytes)
  bool accumulates;  ///< else d = a · b
  float scale_a, scale_b;
  bool transposed_a, transposed_b;  ///< whether k is not the direction of neighbours
};

/// Lists of registers for d that a kernel may have under way.
constexpr int kMostResults = 8;

/// d[16, n] of each of four warps, n / 2 registers per lane. Of odd seeds, operands are read and
/// results there when the group is waited for; until then d is NaN. Of even seeds, at once.
/// @param result which of the kernel's lists of registers d is; negative to compute at once.
void wgmma(Thread& thread, int line, const GroupProduct& product, int result,
           const uint32_t* a_registers, uint64_t a_descriptor, uint64_t b_descriptor, uint32_t* d);
void wgmma_commit(Thread& thread, int line);
void wgmma_wait(Thread& thread, int line, uint32_t groups_left);
/// Whether a result has come since it was last asked for; it is in `d` then.
bool wgmma_take(Thread& thread, int result, int num_registers, uint32_t* d);

}  // namespace ptx
