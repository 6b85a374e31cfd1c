// What a value may be: its range or its choices, and how an error says so.
#pragma once

#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace cairn::config {

struct Rule {
  double least = -std::numeric_limits<double>::infinity();
  double most = std::numeric_limits<double>::infinity();
  bool open_least = false, open_most = false;  // the bound itself is not allowed
  std::vector<std::string> choices;            // of a text, or of each text of a list
  bool auto_word = false;                      // the word `auto` stands for 0 or ""

  Rule or_auto() const {
    Rule rule = *this;
    rule.auto_word = true;
    return rule;
  }
  bool admits(double value) const {
    return (open_least ? value > least : value >= least) && (open_most ? value < most : value <= most);
  }
  // " of at least 1", " above 0 and at most 1", ""
  std::string range() const;
};

inline Rule any() { return {}; }
inline Rule at_least(double least) { return {.least = least}; }
inline Rule above(double least) { return {.least = least, .open_least = true}; }
inline Rule between(double least, double most) { return {.least = least, .most = most}; }
inline Rule from_below(double least, double most) {
  return {.least = least, .most = most, .open_most = true};
}  // [least, most)
inline Rule one_of(std::vector<std::string> choices) { return {.choices = std::move(choices)}; }

}  // namespace cairn::config
