// Option structs -> JSON: the visitor that writes, every default included.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "trainer/config/rules.h"
#include "trainer/config/run_config.h"

namespace cairn::config {

inline std::optional<Json> write_short(const SeedOptions& seed) {
  if (seed.init != seed.data || seed.init != seed.dropout || seed.init != seed.sample) return std::nullopt;
  return Json(seed.init);
}
inline std::optional<Json> write_short(const KeepOptions& keep) {
  return keep.all ? std::optional<Json>("all") : std::nullopt;
}
template <class S>
std::optional<Json> write_short(const S&) {
  return std::nullopt;
}

class Writer {
 public:
  template <class T>
  void key(const char* name, const T& field, const Rule& rule, const char*) {
    json[name] = value(field, rule);
  }
  template <class S>
  void section(const char* name, S& field, const char*) {
    const auto brief = write_short(field);
    json[name] = brief ? *brief : write(field);
  }
  template <class S>
  void maybe(const char* name, std::optional<S>& field, const char*) {
    json[name] = field ? write(*field) : Json(nullptr);
  }
  template <class S>
  void list(const char* name, std::vector<S>& field, const char*) {
    json[name] = Json::array();
    for (auto& item : field) json[name].push_back(write(item));
  }
  void rest(const Json& config) {
    for (const auto& [name, value] : config.items()) json[name] = value;
  }

  template <class S>
  static Json write(S& options) {
    Writer writer;
    visit(writer, options);
    return std::move(writer.json);
  }

  Json json = Json::object();

 private:
  template <class T>
  static Json value(const std::optional<T>& field, const Rule& rule) {
    return field ? value(*field, rule) : Json(nullptr);
  }
  template <class T>
  static Json value(const T& field, const Rule& rule) {
    if constexpr (std::is_same_v<T, int>)
      if (rule.auto_word && field == 0) return "auto";
    if constexpr (std::is_same_v<T, std::string>)
      if (rule.auto_word && field.empty()) return "auto";
    return field;
  }
};

// YAML in block style, short lists and sections of plain values in one line. load() reads the same JSON back.
std::string write_yaml(const Json& json);

}  // namespace cairn::config
