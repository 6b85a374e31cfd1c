#include "trainer/metrics/tally.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace cairn {

void Tally::join(const std::string& name, const Entry& more) {
  const auto [at, is_new] = entries_.try_emplace(name, more);
  if (is_new) return;
  Entry& entry = at->second;
  if (entry.kind != more.kind)
    throw std::invalid_argument(fmt::format("metric '{}': a mean in one place, an extreme in another", name));
  if (more.weight == 0) return;
  if (entry.weight == 0) {
    entry = more;
  } else if (entry.kind == Kind::mean) {
    entry.value += more.value, entry.weight += more.weight;
  } else {
    entry.value = entry.kind == Kind::least ? std::min(entry.value, more.value) : std::max(entry.value, more.value);
  }
}

void Tally::mean(const std::string& name, double sum, double weight) {
  join(name, std::isnan(sum) ? Entry{Kind::mean, 0, 0} : Entry{Kind::mean, sum, weight});
}
void Tally::least(const std::string& name, double value) {
  join(name, {Kind::least, std::isnan(value) ? 0 : value, std::isnan(value) ? 0.0 : 1.0});
}
void Tally::greatest(const std::string& name, double value) {
  join(name, {Kind::greatest, std::isnan(value) ? 0 : value, std::isnan(value) ? 0.0 : 1.0});
}

void Tally::add(const Tally& more) {
  for (const auto& [name, entry] : more.entries_) join(name, entry);
}

std::map<std::string, double> Tally::values() const {
  std::map<std::string, double> values;
  for (const auto& [name, entry] : entries_) {
    if (entry.weight != 0) values[name] = entry.kind == Kind::mean ? entry.value / entry.weight : entry.value;
  }
  return values;
}

std::vector<double> Tally::numbers() const {
  std::vector<double> numbers;
  for (const auto& [name, entry] : entries_) numbers.insert(numbers.end(), {entry.value, entry.weight});
  return numbers;
}

void Tally::take(const std::vector<double>& numbers) {
  if (numbers.size() != 2 * entries_.size()) {
    throw std::invalid_argument(fmt::format("metrics of another rank: {} numbers, expected two for each of {} names",
                                            numbers.size(), entries_.size()));
  }
  size_t at = 0;
  for (auto& [name, entry] : entries_) {
    join(name, {entry.kind, numbers[at], numbers[at + 1]});
    at += 2;
  }
}

}  // namespace cairn
