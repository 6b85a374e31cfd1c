// Reading the fields of a component of tokenizer.json, with errors that name them.
#pragma once

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

namespace cairn::data {

using Json = nlohmann::json;

// The field KEY of the component at WHERE ("pre_tokenizer[1] Split"); throws where it is missing or of another type.
template <class T>
T field(const Json& object, const char* key, const std::string& where) {
  const auto at = object.find(key);
  if (at == object.end()) throw std::runtime_error(fmt::format("{}: '{}' is missing", where, key));
  try {
    return at->template get<T>();
  } catch (const Json::exception&) {
    throw std::runtime_error(fmt::format("{}: '{}' is {}, which is not of the type expected", where, key, at->dump()));
  }
}

template <class T>
T field_or(const Json& object, const char* key, T otherwise, const std::string& where) {
  const auto at = object.find(key);
  if (at == object.end() || at->is_null()) return otherwise;
  return field<T>(object, key, where);
}

// The `type` of a component.
inline std::string component_type(const Json& object, const std::string& where) {
  if (!object.is_object())
    throw std::runtime_error(fmt::format("{}: expected an object with a 'type', found {}", where, object.dump()));
  return field<std::string>(object, "type", where);
}

[[noreturn]] inline void refuse_component(const std::string& where, const std::string& type) {
  throw std::runtime_error(fmt::format("{}: '{}' is not supported", where, type));
}

}  // namespace cairn::data
