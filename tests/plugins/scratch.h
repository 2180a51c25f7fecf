#pragma once
#include <cstring>
#include <memory>
#include <new>

#include "isa.h"

namespace moe_export::test {

/// Scratch for a kernel, filled with NaN: whatever is read before it is written shows.
class Scratch {
 public:
  explicit Scratch(size_t size) : data_(operator new(size, kAlignment)) {
    std::memset(data_.get(), 0xFF, size);
  }

  void* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{cpu::kWorkspaceAlignment};
  struct Release {
    void operator()(void* data) const { operator delete(data, kAlignment); }
  };
  std::unique_ptr<void, Release> data_;
};

}  // namespace moe_export::test
