#pragma once
#include <cstdint>
#include <exception>
#include <string>

#include "spec/errors.h"

namespace moe_export::trt {

/// Writes "moe_export: {reason} ({node})" to stderr, as one line, and keeps it for
/// `moe_export_last_error`: TensorRT itself only says that a method failed.
void report(const std::string& node, const char* reason) noexcept;

/// Runs `body`, reports whatever it throws, and returns TensorRT's 0 for success: no exception may
/// cross into the runtime.
template <class Body>
int32_t guard(const std::string& node, Body&& body) noexcept {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    report(node, error.what());
  } catch (...) {
    report(node, "an unknown exception");
  }
  return 1;
}

}  // namespace moe_export::trt
