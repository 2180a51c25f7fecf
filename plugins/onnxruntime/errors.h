#pragma once
#include <exception>
#include <stdexcept>
#include <string>

#include "ort_api.h"
#include "spec/errors.h"

namespace moe_export::ort {

/// Throws what a call into the runtime reports, and releases it.
inline void check(const OrtApi* api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = GetErrorMessage(api, status);
  ReleaseStatus(api, status);
  throw std::runtime_error(message);
}

/// Runs `body` and turns whatever it throws into a status: no exception may cross into the runtime.
template <class Body>
OrtStatus* guard(const OrtApi* api, Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const ContractError& error) {
    return CreateStatus(api, ORT_INVALID_ARGUMENT, error.what());
  } catch (const std::exception& error) {
    return CreateStatus(api, ORT_FAIL, error.what());
  } catch (...) {
    return CreateStatus(api, ORT_FAIL, "moe_export: an unknown exception");
  }
}

}  // namespace moe_export::ort
