#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace moe_export::cpu {

/// Runs independent tasks, possibly at the same time; a runtime's thread pool or a serial loop.
class ThreadPool {
 public:
  /// Calls `task(context, i)` once for every i in [0, num_tasks), in any order, and waits for all.
  virtual void run(size_t num_tasks, void (*task)(void* context, size_t index), void* context) = 0;

 protected:
  ~ThreadPool() = default;
};

/// Runs every task on the calling thread, in order.
class SerialPool final : public ThreadPool {
 public:
  void run(size_t num_tasks, void (*task)(void*, size_t), void* context) override {
    for (size_t i = 0; i < num_tasks; ++i) task(context, i);
  }
};

/// Calls `task(i)` for every i in [0, num_tasks) on `pool`.
template <class Task>
void parallel_for(ThreadPool& pool, size_t num_tasks, Task&& task) {
  using Callable = std::remove_reference_t<Task>;
  if (num_tasks == 0) return;
  pool.run(
      num_tasks, [](void* context, size_t index) { (*static_cast<Callable*>(context))(index); },
      &task);
}

/// Calls `task(first, last)` on `pool` for chunks that cover [0, count).
/// @param chunk most indices in one of them, at least 1.
template <class Task>
void parallel_chunks(ThreadPool& pool, int64_t count, int64_t chunk, Task&& task) {
  parallel_for(pool, (count + chunk - 1) / chunk, [&](size_t i) {
    const int64_t first = static_cast<int64_t>(i) * chunk;
    task(first, std::min(first + chunk, count));
  });
}

}  // namespace moe_export::cpu
