// Names and shapes of nodes' inputs and outputs (../README.md), the same for every adapter.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "contract.h"
#include "errors.h"

namespace moe_export {

/// Sizes of a tensor; `kUnknownSize` for those that a runtime does not know yet.
using Shape = std::vector<int64_t>;
inline constexpr int64_t kUnknownSize = -1;

/// "[3, 32]"; "?" for a size that is not known.
std::string to_string(const Shape& shape);

/// The inputs that a node with these attributes takes, in order.
std::vector<std::string> input_names(const TopKGatingAttributes& attributes);
std::vector<std::string> input_names(const GroupedExpertsAttributes& attributes);
std::vector<std::string> input_names(const ExpertDispatchAttributes& attributes);
std::vector<std::string> input_names(const GroupedMatMulAttributes& attributes);
std::vector<std::string> input_names(const ExpertCombineAttributes& attributes);

/// What the labels of an op's constraints begin with, "gating" say.
const char* label_prefix(const TopKGatingAttributes&);
const char* label_prefix(const GroupedExpertsAttributes&);
const char* label_prefix(const ExpertDispatchAttributes&);
const char* label_prefix(const GroupedMatMulAttributes&);
const char* label_prefix(const ExpertCombineAttributes&);

/// Shapes of the outputs, in order, for inputs of right shapes.
std::vector<Shape> output_shapes(const TopKGatingAttributes& a, const std::vector<Shape>& inputs);
std::vector<Shape> output_shapes(const GroupedExpertsAttributes& a,
                                 const std::vector<Shape>& inputs);
std::vector<Shape> output_shapes(const ExpertDispatchAttributes& a,
                                 const std::vector<Shape>& inputs);
std::vector<Shape> output_shapes(const GroupedMatMulAttributes& a,
                                 const std::vector<Shape>& inputs);
std::vector<Shape> output_shapes(const ExpertCombineAttributes& a,
                                 const std::vector<Shape>& inputs);

/// Throws unless there are as many inputs as `names`.
void check_input_count(const std::string& label, const std::vector<std::string>& names,
                       size_t count);

/// Throw unless the inputs, as many as `input_names`, have the contract's shapes. Sizes that are
/// not known fit.
/// @throws ContractError the constraint that is broken.
void check_shapes(const TopKGatingAttributes& attributes, const std::vector<Shape>& inputs);
void check_shapes(const ExpertDispatchAttributes& attributes, const std::vector<Shape>& inputs);
void check_shapes(const ExpertCombineAttributes& attributes, const std::vector<Shape>& inputs);

/// The same, where weights may be packed.
/// @param up_bytes, down_bytes, weight_bytes of one expert's packed weights; 0 where they are
///   row-major, `kUnknownSize` where it is not known.
void check_shapes(const GroupedExpertsAttributes& attributes, const std::vector<Shape>& inputs,
                  int64_t up_bytes, int64_t down_bytes);
void check_shapes(const GroupedMatMulAttributes& attributes, const std::vector<Shape>& inputs,
                  int64_t weight_bytes);

}  // namespace moe_export
