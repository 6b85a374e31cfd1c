#include "trainer/data/mixture.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

namespace cairn::data {
namespace {
constexpr int64_t kExactPeriod = 4096, kRoundedPeriod = int64_t{1} << 18;

// Numerators over `period` that equal the shares up to float noise, or nothing.
std::vector<int64_t> exact_quota(const std::vector<double>& share, int64_t period) {
  std::vector<int64_t> quota;
  for (const double s : share) {
    const double scaled = s * static_cast<double>(period), nearest = std::round(scaled);
    if (nearest < 1 || std::abs(scaled - nearest) > 1e-9 * static_cast<double>(period)) return {};
    quota.push_back(static_cast<int64_t>(nearest));
  }
  if (std::accumulate(quota.begin(), quota.end(), int64_t{0}) != period) return {};
  return quota;
}

// Largest remainders, with at least one draw a source.
std::vector<int64_t> rounded_quota(const std::vector<double>& share, int64_t period) {
  std::vector<int64_t> quota;
  std::vector<std::pair<double, size_t>> remainder;
  int64_t left = period;
  for (size_t i = 0; i < share.size(); ++i) {
    const double scaled = share[i] * static_cast<double>(period);
    quota.push_back(std::max<int64_t>(1, static_cast<int64_t>(scaled)));
    remainder.emplace_back(-(scaled - std::floor(scaled)), i);
    left -= quota.back();
  }
  std::sort(remainder.begin(), remainder.end());
  for (size_t i = 0; left > 0; i = (i + 1) % remainder.size(), --left) ++quota[remainder[i].second];
  for (; left < 0; ++left) --*std::max_element(quota.begin(), quota.end());
  return quota;
}
}  // namespace

Mixture::Mixture(const std::vector<double>& weights) {
  if (weights.empty()) throw std::invalid_argument("a mixture needs at least one source");
  if (weights.size() > 1024)
    throw std::invalid_argument(fmt::format("a mixture of {} sources; at most 1024", weights.size()));
  double sum = 0;
  for (const double w : weights) {
    if (!(w > 0) || !std::isfinite(w)) {
      throw std::invalid_argument(
          fmt::format("weight: {} is not positive; leave a source out that is not to be drawn", w));
    }
    sum += w;
  }
  std::vector<double> share;
  for (const double w : weights) share.push_back(w / sum);
  const auto k = static_cast<int64_t>(weights.size());
  for (period_ = k; period_ <= kExactPeriod && quota_.empty(); ++period_) quota_ = exact_quota(share, period_);
  if (quota_.empty()) {
    quota_ = rounded_quota(share, kRoundedPeriod);
    const int64_t divisor =
        std::accumulate(quota_.begin(), quota_.end(), int64_t{0}, [](int64_t a, int64_t b) { return std::gcd(a, b); });
    for (auto& q : quota_) q /= divisor;
  }
  period_ = std::accumulate(quota_.begin(), quota_.end(), int64_t{0});

  // Draw n (from 1) goes to the source with the earliest deadline among those that have fallen behind by 1/(2k-2).
  // lag = period * (n * share - count), so everything stays in integers: lag is within +-period.
  positions_.resize(weights.size());
  std::vector<int64_t> lag(weights.size(), 0);
  const int64_t step = std::max<int64_t>(2 * k - 2, 1);
  for (int64_t n = 0; n < period_; ++n) {
    int64_t chosen = -1, chosen_slack = 0;
    for (int64_t s = 0; s < k; ++s) {
      lag[s] += quota_[s];
      if (k > 1 && lag[s] * step < period_) continue;
      const int64_t slack = period_ * (step - 1) - step * lag[s];
      // slack / quota is the time to the deadline; compared by cross multiplication. Ties: the earlier source.
      __extension__ using Wide = __int128;
      if (chosen < 0 || static_cast<Wide>(slack) * quota_[chosen] < static_cast<Wide>(chosen_slack) * quota_[s]) {
        chosen = s;
        chosen_slack = slack;
      }
    }
    lag[chosen] -= period_;
    source_.push_back(static_cast<int32_t>(chosen));
    rank_.push_back(static_cast<int32_t>(positions_[chosen].size()));
    positions_[chosen].push_back(static_cast<int32_t>(n));
  }
}

Mixture::Place Mixture::at(int64_t draw) const {
  const int64_t cycle = draw / period_, place = draw % period_;
  return {source_[place], cycle * quota_[source_[place]] + rank_[place]};
}

int64_t Mixture::draw_of(int32_t source, int64_t index) const {
  return index / quota_[source] * period_ + positions_[source][index % quota_[source]];
}

int64_t Mixture::count(int32_t source, int64_t draws) const {
  const auto& places = positions_[source];
  const auto before = std::lower_bound(places.begin(), places.end(), static_cast<int32_t>(draws % period_));
  return draws / period_ * quota_[source] + (before - places.begin());
}

double Mixture::weight(int32_t source) const {
  return static_cast<double>(quota_[source]) / static_cast<double>(period_);
}

}  // namespace cairn::data
