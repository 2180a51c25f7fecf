// Loads, stores and atomics. Global and local memory is the host's: AddressSanitizer knows whether
// it may be read. Shared memory is checked here.
#pragma once
#include "arithmetic.h"
#include "kernel_memory.h"
#include "thread.h"

namespace ptx {

/// Words of one access, which is aligned as a whole.
template <class T, int N>
struct alignas(sizeof(T) * N) Words {
  T words[N];
  T& operator[](int i) { return words[i]; }
};

/// `bytes` of global, local or generic memory at `address`.
inline unsigned char* at_address(const Thread& thread, int line, uint64_t address, uint32_t bytes) {
  if (__builtin_expect(address % bytes != 0, 0)) {
    fault(thread, line, "access of %u bytes at misaligned address %#llx", bytes,
          static_cast<unsigned long long>(address));
  }
  return reinterpret_cast<unsigned char*>(address);
}

[[noreturn, gnu::cold]] inline void shared_fault(const Thread& thread, int line, uint32_t offset,
                                                 uint32_t bytes) {
  if (offset % bytes != 0) {
    fault(thread, line, "access of %u bytes at misaligned shared offset %u", bytes, offset);
  }
  fault(thread, line, "access of %u bytes at shared offset %u, out of %u bytes", bytes, offset,
        thread.shared_bytes);
}

/// `bytes` of shared memory, aligned to themselves.
inline unsigned char* at_shared(const Thread& thread, int line, uint32_t offset, uint32_t bytes) {
  if (__builtin_expect(offset % bytes != 0 || offset > thread.shared_bytes ||
                           bytes > thread.shared_bytes - offset,
                       0)) {
    shared_fault(thread, line, offset, bytes);
  }
  return thread.shared + offset;
}

template <class T, int N>
Words<T, N> load(const unsigned char* from) {
  return *reinterpret_cast<const Words<T, N>*>(from);
}
template <class T, int N>
void store(unsigned char* to, const Words<T, N>& words) {
#if defined(PTX_TSAN)
  if (has_bytes(to, &words, sizeof(words))) return;
#endif
  *reinterpret_cast<Words<T, N>*>(to) = words;
}

/// Loads and stores that order memory, or that others may race with.
template <class T, int Order>
T load_atomic(const unsigned char* from) {
  return __atomic_load_n(reinterpret_cast<const T*>(from), Order);
}
template <class T, int Order>
void store_atomic(unsigned char* to, T value) {
  __atomic_store_n(reinterpret_cast<T*>(to), value, Order);
}

/// Replaces what is there by `function` of it; what was there.
template <int Order, class T, class Function>
T exchange(unsigned char* at, Function function) {
  auto* const to = reinterpret_cast<T*>(at);
  T before = __atomic_load_n(to, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(to, &before, static_cast<T>(function(before)), false, Order,
                                      __ATOMIC_RELAXED)) {
  }
  return before;
}

/// atom.inc and atom.dec, which wrap around at `limit`.
inline uint32_t increment(uint32_t value, uint32_t limit) { return value >= limit ? 0 : value + 1; }
inline uint32_t decrement(uint32_t value, uint32_t limit) {
  return value == 0 || value > limit ? limit : value - 1;
}

/// Addresses of parameters fit 32 bits: which one, and a byte of it.
constexpr int kParameterShift = 16;
inline uint64_t parameter_to_generic(const Thread& thread, uint64_t address) {
  return reinterpret_cast<uint64_t>(thread.parameters[address >> kParameterShift]) +
         (address & ((1u << kParameterShift) - 1));
}

/// The generic address of shared memory, and back.
inline uint64_t shared_to_generic(const Thread& thread, uint64_t offset) {
  return reinterpret_cast<uint64_t>(thread.shared) + offset;
}
inline uint64_t generic_to_shared(const Thread& thread, uint64_t address) {
  return address - reinterpret_cast<uint64_t>(thread.shared);
}

}  // namespace ptx
