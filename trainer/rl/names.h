// Tables name -> something, and the refusal of a name that is not in them.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace cairn::rl {

template <class Value>
const Value& find_name(const std::map<std::string, Value>& table, const std::string& key, const std::string& name) {
  if (const auto at = table.find(name); at != table.end()) return at->second;
  std::vector<std::string> names;
  for (const auto& [known, value] : table) names.push_back(known);
  throw std::invalid_argument(fmt::format("{}: '{}' is none of {}", key, name, fmt::join(names, ", ")));
}

}  // namespace cairn::rl
