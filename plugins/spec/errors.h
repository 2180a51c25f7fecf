#pragma once
#include <stdexcept>
#include <string>

namespace moe_export {

/// A node or tensor breaks the op contract; the text starts with the constraint's label.
class ContractError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Throws `ContractError` unless `condition` holds.
/// @param message called for the text after the label, only when it is needed.
template <class Message>
void require(bool condition, const std::string& label, Message&& message) {
  if (!condition) throw ContractError(label + ": " + message());
}

}  // namespace moe_export
