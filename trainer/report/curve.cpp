#include "trainer/report/curve.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace cairn::report {

Curve make_curve(std::string name, std::span<const int64_t> steps, std::span<const int64_t> tokens,
                 std::span<const double> values, size_t most) {
  Curve curve{.name = std::move(name)};
  const size_t n = values.size(), per = std::max<size_t>(1, (n + most - 1) / most);
  curve.per = static_cast<int64_t>(per);
  for (size_t begin = 0; begin < n; begin += per) {
    const size_t end = std::min(n, begin + per);
    double sum = 0, low = kMissing, high = kMissing;
    int64_t count = 0;
    for (size_t i = begin; i < end; ++i) {
      const double v = values[i];
      if (!std::isfinite(v)) {
        ++curve.missing;
        continue;
      }
      sum += v;
      low = count ? std::min(low, v) : v;
      high = count ? std::max(high, v) : v;
      ++count;
      if (std::isnan(curve.first)) curve.first = v;
      curve.last = v;
    }
    curve.values += count;
    curve.step.push_back(steps[end - 1]);
    if (!tokens.empty()) curve.tokens.push_back(tokens[end - 1]);
    curve.mean.push_back(count ? sum / count : kMissing);
    if (per > 1) curve.low.push_back(low), curve.high.push_back(high);
    if (count) {
      curve.lowest = std::isnan(curve.lowest) ? low : std::min(curve.lowest, low);
      curve.highest = std::isnan(curve.highest) ? high : std::max(curve.highest, high);
    }
  }
  return curve;
}

nlohmann::ordered_json to_json(const Curve& curve) {
  auto numbers = [](const std::vector<double>& values) {
    auto out = nlohmann::ordered_json::array();
    for (double v : values) out.push_back(shorten(v));
    return out;
  };
  nlohmann::ordered_json out{{"name", curve.name},
                             {"per", curve.per},
                             {"values", curve.values},
                             {"missing", curve.missing},
                             {"first", shorten(curve.first)},
                             {"last", shorten(curve.last)},
                             {"lowest", shorten(curve.lowest)},
                             {"highest", shorten(curve.highest)},
                             {"step", curve.step}};
  if (!curve.tokens.empty()) out["tokens"] = curve.tokens;
  out["mean"] = numbers(curve.mean);
  if (curve.per > 1) out["low"] = numbers(curve.low), out["high"] = numbers(curve.high);
  return out;
}

double shorten(double value) {
  if (!std::isfinite(value)) return kMissing;
  char text[32];
  std::snprintf(text, sizeof text, "%.7g", value);
  return std::strtod(text, nullptr);
}

std::vector<size_t> thin(size_t n, size_t most, size_t* every) {
  const size_t k = std::max<size_t>(1, (n + most - 1) / std::max<size_t>(most, 1));
  std::vector<size_t> places;
  for (size_t i = 0; i < n; i += k) places.push_back(i);
  if (n > 0 && places.back() != n - 1) places.push_back(n - 1);
  if (every) *every = k;
  return places;
}

}  // namespace cairn::report
