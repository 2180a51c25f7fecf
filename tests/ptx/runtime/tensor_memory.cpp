#include "tensor_memory.h"

#include "engine.h"
#include "machine.h"
#include "operands.h"

namespace ptx {
namespace {

constexpr uint32_t kLanes = 128, kColumns = 512;
constexpr uint32_t kNan = 0x7fbadbad;

struct TensorMemory {
  uint32_t cells[kLanes][kColumns];
  uint32_t allocated = 0;  ///< columns, from the first one on
  bool is_used = true;     ///< since it was last made NaN
};
TensorMemory memory;

/// The first of `count` columns at a lane; all have to be allocated.
uint32_t* cells_at(const Thread& thread, int line, uint32_t lane, uint32_t column, uint32_t count) {
  if (lane >= kLanes || column + count > memory.allocated) {
    fault(thread, line, "columns %u to %u of tensor memory, %u are allocated", column,
          column + count, memory.allocated);
  }
  return memory.cells[lane] + column;
}

/// Where the thread's registers lie.
uint32_t* own_cells(const Thread& thread, int line, TensorShape shape, uint32_t address,
                    uint32_t split, int count) {
  const uint32_t quarter = thread.tid / kWarp % 4 * kWarp, first = address >> 16;
  if (first / kWarp * kWarp != quarter) {
    fault(thread, line, "lanes from %u on, the warp's begin at %u", first, quarter);
  }
  const bool is_half = shape == TensorShape::k16x32bx2;
  const uint32_t lane = first + (is_half ? thread.lane % 16 : thread.lane);
  const uint32_t column = (address & 0xffff) + (is_half && thread.lane >= 16 ? split : 0);
  return cells_at(thread, line, lane, column, static_cast<uint32_t>(count));
}

/// The fields of an instruction descriptor that kernels use.
struct MmaForm {
  explicit MmaForm(uint32_t bits)
      : rows(static_cast<int>(bits >> 24 & 31) * 16),
        columns(static_cast<int>(bits >> 17 & 63) * 8),
        element(bits >> 7 & 7 ? Element::bf16 : Element::f16),
        transposed_a(bits >> 15 & 1),
        transposed_b(bits >> 16 & 1),
        is_known((bits >> 4 & 3) == 1 && (bits >> 7 & 7) <= 1 &&
                 (bits >> 10 & 7) == (bits >> 7 & 7) && (bits & 0xf) == 0 &&
                 (bits >> 13 & 3) == 0 && (rows == 64 || rows == 128)) {}
  int rows, columns;
  Element element;
  bool transposed_a, transposed_b, is_known;
};

SharedMatrix shared_matrix(const Thread& thread, int line, uint64_t descriptor, Element element,
                           bool transposed) {
  constexpr uint32_t kUnknown = 1;
  constexpr uint32_t kSwizzles[] = {0, kUnknown, 128, kUnknown, 64, kUnknown, 32, kUnknown};
  const uint32_t swizzle = kSwizzles[descriptor >> 61];
  if (swizzle == kUnknown)
    fault(thread, line, "swizzle %u", static_cast<uint32_t>(descriptor >> 61));
  return {thread, line, descriptor, swizzle, element, transposed};
}

constexpr int kDepth = 16;

void multiply(const Thread& thread, int line, uint32_t d, uint64_t a, uint64_t b,
              const MmaForm& form, bool accumulates) {
  static float a_values[128][kMostDepth], b_values[256][kMostDepth], b_rows[kDepth][256];
  shared_matrix(thread, line, a, form.element, form.transposed_a).read(0, form.rows, a_values);
  shared_matrix(thread, line, b, form.element, form.transposed_b).read(0, form.columns, b_values);
  for (int k = 0; k < kDepth; ++k) {
    for (int column = 0; column < form.columns; ++column) b_rows[k][column] = b_values[column][k];
  }
  for (int row = 0; row < form.rows; ++row) {
    float sums[256] = {};
    for (int k = 0; k < kDepth; ++k) {
      for (int column = 0; column < form.columns; ++column) {
        sums[column] += a_values[row][k] * b_rows[k][column];
      }
    }
    // 64 rows take half of each quarter of the lanes.
    const int lane = form.rows == 64 ? row / 16 * 32 + row % 16 : row;
    uint32_t* const cells = cells_at(thread, line, (d >> 16) + static_cast<uint32_t>(lane),
                                     d & 0xffff, static_cast<uint32_t>(form.columns));
    for (int column = 0; column < form.columns; ++column) {
      const float before = accumulates ? f32::decode(cells[column]) : 0.0f;
      cells[column] = f32::encode(before + sums[column]);
    }
  }
}

}  // namespace

void forget_tensor_memory() {
  memory.allocated = 0;
  if (!memory.is_used) return;
  memory.is_used = false;
  for (auto& lane : memory.cells) {
    for (uint32_t& cell : lane) cell = kNan;
  }
}

uint32_t allocated_tensor_memory() { return memory.allocated; }

void tensor_memory_alloc(Thread& thread, int line, uint32_t to, uint32_t columns) {
  unsigned char* const target = at_shared(thread, line, to, 4);
  if (thread.lane != 0) return;
  if (columns < 32 || (columns & (columns - 1)) != 0 || memory.allocated + columns > kColumns) {
    fault(thread, line, "allocates %u columns of tensor memory besides %u", columns,
          memory.allocated);
  }
  const uint32_t first = memory.allocated;
  memory.allocated += columns;
  memory.is_used = true;
  write_memory(reinterpret_cast<const unsigned char*>(&first), target, 4);
}

void tensor_memory_dealloc(Thread& thread, int line, uint32_t address, uint32_t columns) {
  if (thread.lane != 0) return;
  if (address + columns != memory.allocated) {
    fault(thread, line, "gives back columns %u to %u of tensor memory, %u are allocated", address,
          address + columns, memory.allocated);
  }
  memory.allocated -= columns;
}

void tensor_memory_load(Thread& thread, int line, TensorShape shape, uint32_t address,
                        uint32_t split, int count, uint32_t* to) {
  const uint32_t* const cells = own_cells(thread, line, shape, address, split, count);
  for (int i = 0; i < count; ++i) to[i] = cells[i];
}

void tensor_memory_store(Thread& thread, int line, TensorShape shape, uint32_t address,
                         uint32_t split, int count, const uint32_t* from) {
  uint32_t* const cells = own_cells(thread, line, shape, address, split, count);
  for (int i = 0; i < count; ++i) cells[i] = from[i];
}

void tensor_memory_mma(Thread& thread, int line, uint32_t d, uint64_t a, uint64_t b, uint32_t form,
                       bool accumulates) {
  const MmaForm known(form);
  if (!known.is_known) fault(thread, line, "matrix product of another form: %08x", form);
  begin_work([&thread, line, d, a, b, known, accumulates] {
    multiply(thread, line, d, a, b, known, accumulates);
  });
}

}  // namespace ptx
