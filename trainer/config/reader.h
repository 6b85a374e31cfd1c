// Tree -> option structs: the visitor that reads. A key that is not there keeps the struct's value, so reading a
// second tree into the same struct lays it over the first.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "trainer/config/rules.h"
#include "trainer/config/tree.h"

namespace cairn::config {

// One value; `path` names it in errors ("optim.lr").
void read_value(const Tree& tree, const std::string& path, const Rule& rule, double& value);
void read_value(const Tree& tree, const std::string& path, const Rule& rule, int& value);
void read_value(const Tree& tree, const std::string& path, const Rule& rule, int64_t& value);
void read_value(const Tree& tree, const std::string& path, const Rule& rule, uint64_t& value);
void read_value(const Tree& tree, const std::string& path, const Rule& rule, bool& value);
void read_value(const Tree& tree, const std::string& path, const Rule& rule, std::string& value);
void read_value(const Tree& tree, const std::string& path, const Rule& rule, std::array<double, 2>& value);
void read_value(const Tree& tree, const std::string& path, const Rule& rule, std::vector<int64_t>& value);
void read_value(const Tree& tree, const std::string& path, const Rule& rule, std::vector<double>& value);
void read_value(const Tree& tree, const std::string& path, const Rule& rule, std::vector<std::string>& value);
template <class T>
void read_value(const Tree& tree, const std::string& path, const Rule& rule, std::optional<T>& value) {
  if (tree.is_null()) {
    value.reset();
    return;
  }
  T inner{};
  read_value(tree, path, rule, inner);
  value = std::move(inner);
}

// Sections that may also be one word or number: true where `tree` was that.
template <class S>
bool read_short(const Tree&, const std::string&, S&) {
  return false;
}
bool read_short(const Tree& tree, const std::string& path, SeedOptions& seed);
bool read_short(const Tree& tree, const std::string& path, KeepOptions& keep);

// All keys of all sections ("optim.lr"), for a near match beyond the section at hand.
const std::vector<std::string>& all_keys();

class Reader {
 public:
  // `tree` is a map or nothing; ConfigError otherwise. `path`: "" at the top. `apart`: keys that the caller reads.
  Reader(const Tree& tree, std::string path, std::vector<std::string> apart = {});

  template <class T>
  void key(const char* name, T& field, const Rule& rule, const char*) {
    if (const auto* entry = take(name)) read_value(entry->value, under(name), rule, field);
  }
  template <class S>
  void section(const char* name, S& field, const char*) {
    if (const auto* entry = take(name))
      if (!read_short(entry->value, under(name), field)) read(entry->value, under(name), field);
  }
  template <class S>
  void maybe(const char* name, std::optional<S>& field, const char*) {
    const auto* entry = take(name);
    if (!entry) return;
    if (entry->value.is_null()) {
      field.reset();
    } else {
      if (!field) field.emplace();
      read(entry->value, under(name), *field);
    }
  }
  template <class S>
  void list(const char* name, std::vector<S>& field, const char*) {
    const auto* entry = take(name);
    if (!entry) return;
    require_list(entry->value, under(name));
    field.assign(entry->value.items.size(), S{});
    for (std::size_t i = 0; i < field.size(); ++i)
      read(entry->value.items[i], under(name) + "." + std::to_string(i), field[i]);
  }
  void rest(Json& config);  // every key that was not taken yet, unchecked

  // Refuses the keys that nobody took.
  void finish() const;

 private:
  template <class S>
  static void read(const Tree& tree, const std::string& path, S& options) {
    Reader reader(tree, path);
    visit(reader, options);
    reader.finish();
  }
  static void require_list(const Tree& tree, const std::string& path);
  const Tree::Entry* take(const std::string& name);
  std::string under(const std::string& name) const { return path_.empty() ? name : path_ + "." + name; }

  const Tree& tree_;
  std::string path_;
  std::vector<std::string> known_;
  bool all_known_ = false;
};

}  // namespace cairn::config
