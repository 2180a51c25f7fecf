// How adapters turn what a runtime has as an attribute into the records of contract.h.
#pragma once
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>

#include "contract.h"
#include "errors.h"

namespace moe_export {

/// The flag that the int attribute `name` stands for.
/// @throws ContractError it is neither 0 nor 1.
inline bool parse_flag(const std::string& label, const char* name, int64_t number) {
  require(number == 0 || number == 1, label,
          [&] { return std::string(name) + " must be 0 or 1; found " + std::to_string(number); });
  return number == 1;
}

/// @throws ContractError the float attribute `name` is infinite or NaN.
inline void check_finite(const std::string& label, const char* name, float value) {
  require(std::isfinite(value), label, [&] {
    return std::string(name) + " must be a finite float; found " + std::to_string(value);
  });
}

/// The value that the string attribute `name` stands for.
/// @throws ContractError it is none of the enumeration's names.
template <class Enum>
Enum parse_choice(const std::string& label, const char* name, std::string_view text) {
  std::string choices;
  int32_t index = 0;
  for (const std::string_view choice : EnumNames<Enum>::kValues) {
    if (text == choice) return static_cast<Enum>(index);
    choices.append(index++ > 0 ? ", " : "").append(choice);
  }
  throw ContractError(label + ": " + name + " must be one of " + choices + "; found '" +
                      std::string(text) + "'");
}

}  // namespace moe_export
