#pragma once
#include <algorithm>
#include <atomic>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "parallel.h"

namespace moe_export::test {

/// Runs tasks on several threads, in another order every time.
class ShuffledPool final : public cpu::ThreadPool {
 public:
  explicit ShuffledPool(int num_threads) : num_threads_(num_threads) {}

  void run(size_t num_tasks, void (*task)(void*, size_t), void* context) override {
    std::vector<size_t> order(num_tasks);
    std::iota(order.begin(), order.end(), size_t{0});
    std::shuffle(order.begin(), order.end(), random_);
    std::atomic<size_t> next{0};
    const auto work = [&] {
      for (size_t i = next++; i < num_tasks; i = next++) task(context, order[i]);
    };
    std::vector<std::thread> threads;
    for (int i = 0; i < num_threads_; ++i) threads.emplace_back(work);
    for (std::thread& thread : threads) thread.join();
  }

 private:
  int num_threads_;
  std::mt19937 random_{7};
};

}  // namespace moe_export::test
