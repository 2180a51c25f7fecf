#pragma once
#include <string>
#include <vector>

#include "errors.h"
#include "spec/attribute_values.h"

namespace moe_export::ort {

/// Reads every attribute of a node; a visitor of the records in spec/contract.h.
class AttributeReader {
 public:
  /// @param label the contract label that messages start with.
  AttributeReader(const OrtApi* api, const OrtKernelInfo* info, std::string label)
      : api_(api), info_(info), label_(std::move(label)) {}

  void operator()(const char* name, int64_t& value) const {
    found(name, "int", KernelInfoGetAttribute_int64(api_, info_, name, &value));
  }

  void operator()(const char* name, bool& value) const {
    int64_t number = 0;
    (*this)(name, number);
    value = parse_flag(label_, name, number);
  }

  void operator()(const char* name, float& value) const {
    found(name, "float", KernelInfoGetAttribute_float(api_, info_, name, &value));
    check_finite(label_, name, value);
  }

  template <class Enum>
  void operator()(const char* name, Enum& value) const {
    value = parse_choice<Enum>(label_, name, read_string(name));
  }

 private:
  std::string read_string(const char* name) const {
    size_t size = 0;  // with the terminating zero
    found(name, "string", KernelInfoGetAttribute_string(api_, info_, name, nullptr, &size));
    std::vector<char> buffer(size + 1, '\0');
    found(name, "string", KernelInfoGetAttribute_string(api_, info_, name, buffer.data(), &size));
    return buffer.data();
  }

  /// Missing or of another type: the runtime's text says which.
  void found(const char* name, const char* type, OrtStatus* status) const {
    try {
      check(api_, status);
    } catch (const std::runtime_error& error) {
      throw ContractError(label_ + ": the node needs attribute " + name + " of type " + type +
                          " (" + error.what() + ")");
    }
  }

  const OrtApi* api_;
  const OrtKernelInfo* info_;
  std::string label_;
};

}  // namespace moe_export::ort
