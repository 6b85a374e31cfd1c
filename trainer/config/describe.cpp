#include "trainer/config/describe.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "trainer/config/reader.h"
#include "trainer/config/visit.h"
#include "trainer/config/writer.h"

namespace cairn::config {
namespace {

template <class T>
constexpr const char* kKind = "a text";
template <>
constexpr const char* kKind<double> = "a number";
template <>
constexpr const char* kKind<int> = "an integer";
template <>
constexpr const char* kKind<int64_t> = "an integer";
template <>
constexpr const char* kKind<uint64_t> = "an integer";
template <>
constexpr const char* kKind<bool> = "true or false";
template <>
constexpr const char* kKind<std::array<double, 2>> = "two numbers";
template <>
constexpr const char* kKind<std::vector<int64_t>> = "a list of integers";
template <>
constexpr const char* kKind<std::vector<std::string>> = "a list";
template <class T>
constexpr const char* kKind<std::optional<T>> = kKind<T>;

// Walks the structs themselves: a list counts as its first entry.
class Describer {
 public:
  Describer(std::string path, std::vector<KeyDescription>& out) : path_(std::move(path)), out_(out) {}

  template <class T>
  void key(const char* name, const T& field, const Rule& rule, const char* doc) {
    Writer writer;
    writer.key(name, field, rule, doc);
    std::string standard = write_yaml(writer.json);
    standard = standard.substr(standard.find(": ") + 2);
    standard.pop_back();  // the end of the line
    out_.push_back({under(name), standard, describe_rule(rule, kKind<T>), doc});
  }
  template <class S>
  void section(const char* name, S& field, const char* doc) {
    out_.push_back({under(name), "", "", doc});
    Describer inner(under(name), out_);
    visit(inner, field);
  }
  template <class S>
  void maybe(const char* name, std::optional<S>&, const char* doc) {
    S field;
    section(name, field, doc);
  }
  template <class S>
  void list(const char* name, std::vector<S>&, const char* doc) {
    S field;
    out_.push_back({under(name), "", "", doc});
    Describer inner(under(name) + ".0", out_);
    visit(inner, field);
  }
  void rest(const Json&) {}

 private:
  std::string under(const std::string& name) const { return path_.empty() ? name : path_ + "." + name; }
  std::string path_;
  std::vector<KeyDescription>& out_;
};

std::string plain(double bound) {
  return bound == std::trunc(bound) ? fmt::format("{:.0f}", bound) : fmt::format("{}", bound);
}

}  // namespace

std::string Rule::range() const {
  std::vector<std::string> parts;
  if (std::isfinite(least)) parts.push_back(fmt::format("{} {}", open_least ? "above" : "of at least", plain(least)));
  if (std::isfinite(most)) parts.push_back(fmt::format("{} {}", open_most ? "below" : "at most", plain(most)));
  return parts.empty() ? "" : fmt::format(" {}", fmt::join(parts, " and "));
}

std::string describe_rule(const Rule& rule, const std::string& kind) {
  const std::string base =
      rule.choices.empty() ? kind + rule.range() : fmt::format("one of {}", fmt::join(rule.choices, ", "));
  return rule.auto_word ? base + " or auto" : base;
}

const std::vector<KeyDescription>& key_descriptions() {
  static const std::vector<KeyDescription> all = [] {
    std::vector<KeyDescription> list;
    Describer describer("", list);
    RunConfig config;
    visit(describer, config);
    list.push_back({"stages", "", "", "a list of {name, steps, data, optim, train}: what changes inside the run"});
    return list;
  }();
  return all;
}

const std::vector<std::string>& all_keys() {
  static const std::vector<std::string> keys = [] {
    std::vector<std::string> list;
    for (const auto& description : key_descriptions()) list.push_back(description.key);
    return list;
  }();
  return keys;
}

std::string describe() {
  constexpr int kColumn = 42;
  std::string out;
  for (const auto& [key, standard, allowed, doc] : key_descriptions()) {
    const bool top = key.find('.') == std::string::npos, section = allowed.empty();
    const std::string setting = section ? key : fmt::format("{}={}", key, standard);
    if (top && section && !out.empty()) out += "\n";
    out += fmt::format("{:<{}}  {}{}\n", (top ? "" : "  ") + setting, kColumn, doc,
                       section ? "" : fmt::format(" ({})", allowed));
  }
  return out;
}

}  // namespace cairn::config
