#include "trainer/config/reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "trainer/config/describe.h"
#include "trainer/config/visit.h"

namespace cairn::config {
namespace {

[[noreturn]] void refuse(const Tree& tree, const std::string& path, const std::string& expected,
                         const std::string& hint = "") {
  fail(tree.where, path, fmt::format("found {}, expected {}{}", tree.found(), expected, hint));
}

// 1000, 1e9 and 1_000_000 are whole numbers alike.
template <class T>
bool parse_integer(const std::string& text, T& value) {
  std::string digits = text;
  std::erase(digits, '_');
  const char* first = digits.data() + (digits.starts_with('+') ? 1 : 0);
  const char* last = digits.data() + digits.size();
  if (auto [end, error] = std::from_chars(first, last, value); error == std::errc() && end == last) return true;
  double real;
  const auto [end, error] = std::from_chars(first, last, real);
  if (error != std::errc() || end != last || real != std::trunc(real) || std::abs(real) > 9007199254740992.0)
    return false;
  if (std::is_unsigned_v<T> && real < 0) return false;
  value = static_cast<T>(real);
  return true;
}

template <class T>
void read_integer(const Tree& tree, const std::string& path, const Rule& rule, T& value) {
  if (rule.auto_word && tree.is_scalar() && tree.scalar == "auto") {
    value = 0;
    return;
  }
  std::conditional_t<std::is_unsigned_v<T>, uint64_t, int64_t> wide = 0;
  const std::string expected = describe_rule(rule, "an integer");
  if (!tree.is_scalar() || tree.quoted || !parse_integer(tree.scalar, wide)) refuse(tree, path, expected);
  value = static_cast<T>(wide);
  if (static_cast<decltype(wide)>(value) != wide || !rule.admits(static_cast<double>(wide)))
    refuse(tree, path, expected);
}

}  // namespace

void read_value(const Tree& tree, const std::string& path, const Rule& rule, double& value) {
  const std::string expected = describe_rule(rule, "a number");
  if (!tree.is_scalar() || tree.quoted) refuse(tree, path, expected);
  const std::string& text = tree.scalar;
  const char* first = text.data() + (text.starts_with('+') ? 1 : 0);
  const auto [end, error] = std::from_chars(first, text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value) || !rule.admits(value))
    refuse(tree, path, expected);
}

void read_value(const Tree& tree, const std::string& path, const Rule& rule, int& value) {
  read_integer(tree, path, rule, value);
}
void read_value(const Tree& tree, const std::string& path, const Rule& rule, int64_t& value) {
  read_integer(tree, path, rule, value);
}
void read_value(const Tree& tree, const std::string& path, const Rule& rule, uint64_t& value) {
  read_integer(tree, path, rule, value);
}

void read_value(const Tree& tree, const std::string& path, const Rule&, bool& value) {
  const bool yes = tree.is_scalar() && !tree.quoted && tree.scalar == "true";
  const bool no = tree.is_scalar() && !tree.quoted && tree.scalar == "false";
  if (!yes && !no) refuse(tree, path, "true or false");
  value = yes;
}

void read_value(const Tree& tree, const std::string& path, const Rule& rule, std::string& value) {
  const std::string expected = describe_rule(rule, "a text");
  if (!tree.is_scalar()) refuse(tree, path, expected);
  if (rule.auto_word && tree.scalar == "auto") {
    value.clear();
    return;
  }
  if (!rule.choices.empty() && std::find(rule.choices.begin(), rule.choices.end(), tree.scalar) == rule.choices.end())
    refuse(tree, path, expected, did_you_mean(tree.scalar, rule.choices));
  value = tree.scalar;
}

void read_value(const Tree& tree, const std::string& path, const Rule& rule, std::array<double, 2>& value) {
  if (!tree.is_list() || tree.items.size() != 2) refuse(tree, path, "a list of two numbers such as [0.9, 0.95]");
  for (std::size_t i = 0; i < 2; ++i) read_value(tree.items[i], fmt::format("{}.{}", path, i), rule, value[i]);
}

template <class T>
static void read_items(const Tree& tree, const std::string& path, const Rule& rule, std::vector<T>& value) {
  if (!tree.is_list() && !tree.is_null()) refuse(tree, path, "a list such as [a, b]");
  value.assign(tree.items.size(), T{});
  for (std::size_t i = 0; i < value.size(); ++i)
    read_value(tree.items[i], fmt::format("{}.{}", path, i), rule, value[i]);
}

void read_value(const Tree& tree, const std::string& path, const Rule& rule, std::vector<int64_t>& value) {
  read_items(tree, path, rule, value);
}
void read_value(const Tree& tree, const std::string& path, const Rule& rule, std::vector<double>& value) {
  read_items(tree, path, rule, value);
}
void read_value(const Tree& tree, const std::string& path, const Rule& rule, std::vector<std::string>& value) {
  read_items(tree, path, rule, value);
}

bool read_short(const Tree& tree, const std::string& path, SeedOptions& seed) {
  if (tree.is_map()) return false;
  if (!tree.is_scalar()) refuse(tree, path, "a number or {init, data, dropout, sample}");
  read_value(tree, path, any(), seed.init);
  seed.data = seed.dropout = seed.sample = seed.init;
  return true;
}

bool read_short(const Tree& tree, const std::string& path, KeepOptions& keep) {
  if (!tree.is_map() && !(tree.is_scalar() && tree.scalar == "all")) refuse(tree, path, "all or {last, every, best}");
  keep = {};
  keep.all = !tree.is_map();
  return keep.all;
}

Reader::Reader(const Tree& tree, std::string path, std::vector<std::string> apart)
    : tree_(tree), path_(std::move(path)), known_(std::move(apart)) {
  if (!tree.is_map() && !tree.is_null())
    fail(tree.where, path_, fmt::format("found {}, expected a section (keys with values)", tree.found()));
}

const Tree::Entry* Reader::take(const std::string& name) {
  known_.push_back(name);
  return tree_.find(name);
}

void Reader::require_list(const Tree& tree, const std::string& path) {
  if (!tree.is_list() && !tree.is_null()) refuse(tree, path, "a list (each entry begins with '- ')");
}

void Reader::rest(Json& config) {
  for (const auto& entry : tree_.entries)
    if (std::find(known_.begin(), known_.end(), entry.key) == known_.end()) config[entry.key] = to_json(entry.value);
  all_known_ = true;
}

void Reader::finish() const {
  if (all_known_) return;
  for (const auto& entry : tree_.entries) {
    if (std::find(known_.begin(), known_.end(), entry.key) != known_.end()) continue;
    std::string hint = did_you_mean(entry.key, known_);
    std::vector<std::string> leaves;
    for (const auto& key : all_keys()) leaves.push_back(key.substr(key.rfind('.') + 1));
    const bool elsewhere = std::find(leaves.begin(), leaves.end(), entry.key) != leaves.end();
    if (hint.empty() || elsewhere) {  // a key of another section, perhaps
      const std::string leaf = near_match(entry.key, leaves);
      if (!leaf.empty()) {
        const auto at = std::find(leaves.begin(), leaves.end(), leaf) - leaves.begin();
        hint = fmt::format(" (did you mean '{}'?)", all_keys()[at]);
      }
    }
    fail(entry.where, under(entry.key),
         fmt::format("found an unknown key, expected one of {}{}", fmt::join(known_, ", "), hint));
  }
}

}  // namespace cairn::config
