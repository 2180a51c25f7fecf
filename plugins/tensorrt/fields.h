// Attributes as TensorRT's plugin fields: three visitors of the records in spec/contract.h.
#pragma once
#include <NvInferRuntime.h>

#include <deque>
#include <string>
#include <vector>

#include "spec/attribute_values.h"

namespace moe_export::trt {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

/// Fields that own their names and values.
class FieldList {
 public:
  void add_int(const char* name, int64_t value);
  void add_float(const char* name, float value);
  void add_string(const char* name, std::string_view value);

  /// Valid until the list changes.
  const PluginFieldCollection* collection();

 private:
  // Addresses of what is added first must stay.
  std::deque<int64_t> ints_;
  std::deque<float> floats_;
  std::deque<std::string> strings_;
  std::vector<PluginField> fields_;
  PluginFieldCollection collection_;
};

/// Adds every attribute to a list. The parser passes only attributes that the creator has a field
/// of, of whatever type the node has them; a creator's values mean nothing.
class FieldWriter {
 public:
  explicit FieldWriter(FieldList& fields) : fields_(fields) {}

  void operator()(const char* name, int64_t value) const { fields_.add_int(name, value); }
  void operator()(const char* name, bool value) const { fields_.add_int(name, value ? 1 : 0); }
  void operator()(const char* name, float value) const { fields_.add_float(name, value); }
  template <class Enum>
  void operator()(const char* name, Enum value) const {
    fields_.add_string(name, EnumNames<Enum>::kValues[static_cast<size_t>(value)]);
  }

 private:
  FieldList& fields_;
};

/// Reads every attribute. What the parser sends was seen in TensorRT-RTX 1.7.1: an int as one
/// kINT32, cut to 32 bits without a word; a float as kFLOAT32; a string as kCHAR with its
/// terminating zero in the length; nothing for an attribute that the node lacks.
class FieldReader {
 public:
  /// @param label the contract label that messages start with.
  FieldReader(const PluginFieldCollection& fields, std::string label)
      : fields_(fields), label_(std::move(label)) {}

  void operator()(const char* name, int64_t& value) const { value = read_int(name); }
  void operator()(const char* name, bool& value) const {
    value = parse_flag(label_, name, read_int(name));
  }
  void operator()(const char* name, float& value) const {
    value = read_float(name);
    check_finite(label_, name, value);
  }
  template <class Enum>
  void operator()(const char* name, Enum& value) const {
    value = parse_choice<Enum>(label_, name, read_string(name));
  }

  /// The string `name`, or an empty one if there is no such field.
  std::string find_string(const char* name) const;

 private:
  const PluginField* find(const char* name) const;
  [[noreturn]] void refuse(const char* name, const char* type, const PluginField* found) const;
  int64_t read_int(const char* name) const;
  float read_float(const char* name) const;
  std::string read_string(const char* name) const;

  const PluginFieldCollection& fields_;
  std::string label_;
};

}  // namespace moe_export::trt
