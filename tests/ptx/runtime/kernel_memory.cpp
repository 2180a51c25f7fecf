#include "kernel_memory.h"

namespace ptx {

void read_memory(const unsigned char* from, unsigned char* to, uint32_t count) {
  if (count == 16) {
    *reinterpret_cast<__int128*>(to) = *reinterpret_cast<const __int128*>(from);
    return;
  }
  for (uint32_t i = 0; i < count; ++i) to[i] = from[i];
}

void write_memory(const unsigned char* from, unsigned char* to, uint32_t count) {
  for (uint32_t i = 0; i < count; ++i) to[i] = from[i];
}

void spoil_memory(unsigned char* to, uint32_t count) {
  for (uint32_t i = 0; i < count; ++i) to[i] = 0xff;
}

}  // namespace ptx
