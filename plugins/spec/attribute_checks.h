// The contract's constraints on attributes (../README.md), the same for every adapter. What one
// library does not compute is its adapter's to refuse.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <string>

#include "contract.h"
#include "errors.h"

namespace moe_export {

template <class Enum>
std::string name_of(Enum value) {
  return std::string(EnumNames<Enum>::kValues[static_cast<size_t>(value)]);
}

/// Throws unless `count` experts can be routed to, `logits` being [T, `count`].
/// @throws ContractError gating_c2, c4, c5 or c6.
void check_experts(const TopKGatingAttributes& attributes, int64_t count);

/// Throw unless the attributes keep to the contract.
/// @throws ContractError the constraint that is broken.
void check_attributes(const TopKGatingAttributes& attributes);
void check_attributes(const GroupedExpertsAttributes& attributes);
void check_attributes(const ExpertDispatchAttributes& attributes);
void check_attributes(const GroupedMatMulAttributes& attributes);
void check_attributes(const ExpertCombineAttributes& attributes);

}  // namespace moe_export
