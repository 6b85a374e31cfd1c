#include "checkpoints/analysis/spectrum.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace cairn::checkpoints {

double effective_rank(std::span<const double> sigma) {
  const double sum = std::accumulate(sigma.begin(), sigma.end(), 0.0);
  if (sum == 0) return 0;
  double entropy = 0;
  for (const double s : sigma) {
    const double p = s / sum;
    if (!(p <= 0)) entropy -= p * std::log(p);
  }
  return std::exp(entropy);
}

double stable_rank(std::span<const double> sigma) {
  double squares = 0, most = 0;
  for (const double s : sigma) {
    squares += s * s;
    most = std::max(most, s);
  }
  return squares == 0 ? 0 : squares / (most * most);
}

PowerLaw fit_power_law(std::vector<double> x) {
  std::erase_if(x, [](double value) { return !(value > 0) || std::isinf(value); });
  std::sort(x.begin(), x.end());
  const int64_t n = static_cast<int64_t>(x.size());
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  PowerLaw best{kNaN, kNaN, kNaN, 0};
  if (n < 2 || x.front() == x.back()) return best;
  std::vector<double> logs(n), above(n + 1, 0.0);  // ln x; sums of it from i on
  for (int64_t i = n - 1; i >= 0; --i) {
    logs[i] = std::log(x[i]);
    above[i] = above[i + 1] + logs[i];
  }
  for (int64_t first = 0; first < n && x[first] < x.back(); ++first) {
    if (first > 0 && x[first] == x[first - 1]) continue;
    const double tail = static_cast<double>(n - first);
    const double slope = tail / (above[first] - tail * logs[first]);  // alpha - 1
    double distance = 0;
    for (int64_t i = first; i < n; ++i) {
      const double law = -std::expm1(slope * (logs[first] - logs[i]));
      distance = std::max(distance, std::abs(law - static_cast<double>(i - first) / tail));
    }
    if (std::isnan(best.distance) || distance < best.distance) best = {1 + slope, x[first], distance, n - first};
  }
  return best;
}

}  // namespace cairn::checkpoints
