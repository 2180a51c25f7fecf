#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

#include "isa.h"

namespace moe_export::cpu {

/// Uninitialized memory for the kernels, aligned by hand: what glibc's aligned allocation frees, it
/// hardly finds again (measured on 2.36: five times the scratch stayed resident).
class AlignedMemory {
 public:
  explicit AlignedMemory(size_t size) : memory_(new unsigned char[size + kWorkspaceAlignment]) {}

  void* data() const {
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    const size_t over = address % kWorkspaceAlignment;
    return memory_.get() + (over == 0 ? 0 : kWorkspaceAlignment - over);
  }

 private:
  std::unique_ptr<unsigned char[]> memory_;
};

}  // namespace moe_export::cpu
