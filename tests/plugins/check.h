#pragma once
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>

namespace moe_export::test {

inline int num_passed = 0;
inline int num_failed = 0;

/// Fails the running case unless `condition` holds.
inline void expect(bool condition, const std::string& message) {
  if (!condition) throw std::runtime_error(message);
}

/// Runs one case; it fails by throwing.
template <class Body>
void run_case(const std::string& name, Body&& body) {
  try {
    body();
    ++num_passed;
  } catch (const std::exception& error) {
    ++num_failed;
    std::printf("FAILED %s: %s\n", name.c_str(), error.what());
  }
}

/// Prints the totals; the process's exit status.
inline int finish() {
  std::printf("%d passed, %d failed\n", num_passed, num_failed);
  return num_failed == 0 && num_passed > 0 ? 0 : 1;
}

}  // namespace moe_export::test
