// Flows of control with stacks of their own, and what the sanitizers have to know of them.
#pragma once
#include <cstddef>

#if !defined(__x86_64__)
#error "fibers change stacks by x86-64 instructions"
#endif

namespace ptx {

/// A flow that runs, or that waits with its registers on its stack.
struct Flow {
  void* stack_pointer = nullptr;
  void* stack = nullptr;  ///< its lowest byte
  size_t stack_bytes = 0;
  void* sanitizer = nullptr;
};

/// Makes `flow` begin at `entry` with the stack given, when it is first switched to.
/// `entry` must not return.
void begin_flow(Flow& flow, void* stack, size_t stack_bytes, void (*entry)());

/// The first thing that a flow's `entry` does. `scheduler` is who switched to it.
void enter_flow(Flow& scheduler);

/// Makes `flow` the one that runs now.
void adopt_current_flow(Flow& flow);

/// Frees what the sanitizers hold for a flow that does not run.
void end_flow(Flow& flow);

/// Goes on with `to`; returns when somebody switches back to `from`.
void switch_flow(Flow& from, Flow& to);

}  // namespace ptx
