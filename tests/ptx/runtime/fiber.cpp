#include "fiber.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(PTX_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

// Saves the registers that a call keeps, changes stacks, and takes the other's from there.
extern "C" void ptx_switch_stacks(void** save, void* to);
asm(R"(
.text
.hidden ptx_switch_stacks
.globl ptx_switch_stacks
.type ptx_switch_stacks, @function
ptx_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size ptx_switch_stacks, .-ptx_switch_stacks
)");

namespace ptx {

void begin_flow(Flow& flow, void* stack, size_t stack_bytes, void (*entry)()) {
  flow.stack = stack;
  flow.stack_bytes = stack_bytes;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack, stack_bytes);  // of whoever had it before
  flow.sanitizer = nullptr;
#elif defined(PTX_TSAN)
  flow.sanitizer = __tsan_create_fiber(0);
#endif
  auto* const top = reinterpret_cast<void**>(static_cast<char*>(stack) + stack_bytes) - 2;
  top[0] = reinterpret_cast<void*>(entry);  // where the switch returns to
  top[1] = nullptr;                         // where `entry` would, which keeps its stack aligned
  for (int i = 1; i <= 6; ++i) top[-i] = nullptr;
  flow.stack_pointer = top - 6;
}

void adopt_current_flow(Flow& flow) {
#if defined(PTX_TSAN)
  flow.sanitizer = __tsan_get_current_fiber();
#endif
  (void)flow;
}

void enter_flow(Flow& scheduler) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, const_cast<const void**>(&scheduler.stack),
                                  &scheduler.stack_bytes);
#endif
  (void)scheduler;
}

void end_flow(Flow& flow) {
#if defined(PTX_TSAN)
  __tsan_destroy_fiber(flow.sanitizer);
#endif
  (void)flow;
}

void switch_flow(Flow& from, Flow& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.sanitizer, to.stack, to.stack_bytes);
#elif defined(PTX_TSAN)
  __tsan_switch_to_fiber(to.sanitizer, __tsan_switch_to_fiber_no_sync);
#endif
  ptx_switch_stacks(&from.stack_pointer, to.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.sanitizer, nullptr, nullptr);
#endif
}

}  // namespace ptx
