#include "kernel_memory.h"

namespace ptx {

void read_memory(const unsigned char* from, unsigned char* to, uint32_t count) {
  if (count == 16) {
    *reinterpret_cast<__int128*>(to) = *reinterpret_cast<const __int128*>(from);
    return;
  }
  for (uint32_t i = 0; i < count; ++i) to[i] = from[i];
}

__attribute__((no_sanitize("thread"))) bool has_bytes(const void* at, const void* bytes,
                                                      uint32_t count) {
  const auto* const old_bytes = static_cast<const unsigned char*>(at);
  const auto* const new_bytes = static_cast<const unsigned char*>(bytes);
  bool same = true;
  for (uint32_t i = 0; i < count; ++i) same = same && old_bytes[i] == new_bytes[i];
  return same;
}

void write_memory(const unsigned char* from, unsigned char* to, uint32_t count) {
#if defined(PTX_TSAN)
  if (has_bytes(to, from, count)) return;
#endif
  for (uint32_t i = 0; i < count; ++i) to[i] = from[i];
}

void spoil_memory(unsigned char* to, uint32_t count) {
  for (uint32_t i = 0; i < count; ++i) to[i] = 0xff;
}

}  // namespace ptx
