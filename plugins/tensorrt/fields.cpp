#include "fields.h"

#include <cstring>

namespace moe_export::trt {
namespace {

/// The text of a kCHAR field, which may or may not end with a zero.
std::string text_of(const PluginField& field) {
  const char* const begin = static_cast<const char*>(field.data);
  return {begin, strnlen(begin, static_cast<size_t>(field.length))};
}

std::string describe(const PluginField* field) {
  if (field == nullptr) return "it has none";
  const std::string length = " of length " + std::to_string(field->length);
  switch (field->type) {
    case PluginFieldType::kINT32:
    case PluginFieldType::kINT64:
      return "it has ints" + length;
    case PluginFieldType::kFLOAT32:
    case PluginFieldType::kFLOAT64:
      return "it has floats" + length;
    case PluginFieldType::kCHAR:
      return "it has the string '" + text_of(*field) + "'";
    default:
      return "it has a field of type " + std::to_string(static_cast<int>(field->type));
  }
}

}  // namespace

void FieldList::add_int(const char* name, int64_t value) {
  fields_.emplace_back(name, &ints_.emplace_back(value), PluginFieldType::kINT64, 1);
}

void FieldList::add_float(const char* name, float value) {
  fields_.emplace_back(name, &floats_.emplace_back(value), PluginFieldType::kFLOAT32, 1);
}

void FieldList::add_string(const char* name, std::string_view value) {
  const std::string& text = strings_.emplace_back(value);
  const auto length = static_cast<int32_t>(text.size() + 1);  // with the terminating zero
  fields_.emplace_back(name, text.c_str(), PluginFieldType::kCHAR, length);
}

const PluginFieldCollection* FieldList::collection() {
  collection_ = {static_cast<int32_t>(fields_.size()), fields_.data()};
  return &collection_;
}

const PluginField* FieldReader::find(const char* name) const {
  for (int32_t i = 0; i < fields_.nbFields; ++i) {
    const PluginField& field = fields_.fields[i];
    if (field.data != nullptr && std::strcmp(field.name, name) == 0) return &field;
  }
  return nullptr;
}

void FieldReader::refuse(const char* name, const char* type, const PluginField* found) const {
  throw ContractError(label_ + ": the node needs attribute " + name + " of type " + type + " (" +
                      describe(found) + ")");
}

int64_t FieldReader::read_int(const char* name) const {
  const PluginField* const field = find(name);
  if (field != nullptr && field->length == 1) {
    if (field->type == PluginFieldType::kINT32) return *static_cast<const int32_t*>(field->data);
    if (field->type == PluginFieldType::kINT64) return *static_cast<const int64_t*>(field->data);
  }
  refuse(name, "int", field);
}

float FieldReader::read_float(const char* name) const {
  const PluginField* const field = find(name);
  if (field != nullptr && field->length == 1) {
    if (field->type == PluginFieldType::kFLOAT32) return *static_cast<const float*>(field->data);
    if (field->type == PluginFieldType::kFLOAT64) {
      return static_cast<float>(*static_cast<const double*>(field->data));
    }
  }
  refuse(name, "float", field);
}

std::string FieldReader::read_string(const char* name) const {
  const PluginField* const field = find(name);
  if (field == nullptr || field->type != PluginFieldType::kCHAR) refuse(name, "string", field);
  return text_of(*field);
}

std::string FieldReader::find_string(const char* name) const {
  return find(name) == nullptr ? "" : read_string(name);
}

}  // namespace moe_export::trt
