#include "errors.h"

#include <cstdio>
#include <mutex>

namespace moe_export::trt {
namespace {

std::mutex mutex;

/// Never destroyed: TensorRT may call plugins until the process ends.
std::string& last_error() {
  static auto* const text = new std::string;
  return *text;
}

}  // namespace

void report(const std::string& node, const char* reason) noexcept {
  try {
    std::string text = "moe_export: " + std::string(reason);
    if (!node.empty()) text += " (" + node + ")";
    std::fprintf(stderr, "%s\n", text.c_str());
    const std::lock_guard<std::mutex> lock(mutex);
    last_error() = text;
  } catch (...) {  // no memory left for words
    std::fputs("moe_export: out of memory\n", stderr);
  }
}

}  // namespace moe_export::trt

/// What a plugin reported last in this process, empty if nothing; valid until the calling thread
/// asks again.
extern "C" __attribute__((visibility("default"))) const char* moe_export_last_error() {
  using namespace moe_export::trt;
  thread_local std::string copy;
  const std::lock_guard<std::mutex> lock(mutex);
  copy = last_error();
  return copy.c_str();
}
