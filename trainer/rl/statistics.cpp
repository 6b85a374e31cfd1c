#include "trainer/rl/statistics.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <stdexcept>

namespace cairn::rl {
namespace {
constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

std::vector<double> with_verdict(const std::vector<double>& scores) {
  std::vector<double> out;
  std::copy_if(scores.begin(), scores.end(), std::back_inserter(out), [](double s) { return !std::isnan(s); });
  return out;
}

double mean_of(std::span<const double> values) {
  return values.empty() ? kNone
                        : std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}
}  // namespace

MeanEstimate estimate_mean(std::span<const double> values) {
  MeanEstimate out{mean_of(values), kNone, static_cast<int64_t>(values.size())};
  if (values.size() < 2) return out;
  double squares = 0;
  for (const double value : values) squares += (value - out.mean) * (value - out.mean);
  const auto n = static_cast<double>(values.size());
  out.standard_error = std::sqrt(squares / (n - 1) / n);
  return out;
}

MeanEstimate accuracy(const std::vector<std::vector<double>>& scores) {
  std::vector<double> means;
  for (const auto& answers : scores)
    if (const auto judged = with_verdict(answers); !judged.empty()) means.push_back(mean_of(judged));
  return estimate_mean(means);
}

double pass_at_k(int64_t n, int64_t c, int64_t k) {
  if (c < 0 || c > n || k < 1 || k > n)
    throw std::invalid_argument(fmt::format("pass@{} of {} answers, {} of them right", k, n, c));
  if (n - c < k) return 1;
  double none_right = 1;
  for (int64_t i = n - c + 1; i <= n; ++i) none_right *= 1 - static_cast<double>(k) / static_cast<double>(i);
  return 1 - none_right;
}

MeanEstimate pass_at_k(const std::vector<std::vector<double>>& scores, int64_t k) {
  std::vector<double> chances;
  for (const auto& answers : scores) {
    const auto judged = with_verdict(answers);
    const auto right = std::count_if(judged.begin(), judged.end(), [](double s) { return s >= 1; });
    if (const auto n = static_cast<int64_t>(judged.size()); n >= std::max<int64_t>(k, 1))
      chances.push_back(pass_at_k(n, right, k));
  }
  return estimate_mean(chances);
}

double majority(std::span<const Vote> votes) {
  struct Tally {
    int64_t votes = 0;
    std::vector<double> scores;
  };
  std::map<std::string, Tally> tallies;
  int64_t most = 0;
  for (const auto& vote : votes) {
    if (vote.answer.empty()) continue;
    auto& tally = tallies[vote.answer];
    most = std::max(most, ++tally.votes);
    if (!std::isnan(vote.score)) tally.scores.push_back(vote.score);
  }
  if (tallies.empty()) return 0;
  std::vector<double> winners;
  for (const auto& [answer, tally] : tallies)
    if (tally.votes == most && !tally.scores.empty()) winners.push_back(mean_of(tally.scores));
  return mean_of(winners);
}

MeanEstimate majority_at_k(const std::vector<std::vector<Vote>>& votes, int64_t k) {
  if (k < 1) throw std::invalid_argument(fmt::format("majority@{}: expected at least 1", k));
  std::vector<double> means;
  for (const auto& answers : votes) {
    std::vector<double> groups;
    for (size_t at = 0; at + static_cast<size_t>(k) <= answers.size(); at += static_cast<size_t>(k))
      groups.push_back(majority(std::span(answers).subspan(at, static_cast<size_t>(k))));
    if (const auto judged = with_verdict(groups); !judged.empty()) means.push_back(mean_of(judged));
  }
  return estimate_mean(means);
}

Lengths lengths(std::vector<int64_t> tokens) {
  if (tokens.empty()) return {0, kNone, 0, 0, 0};
  std::sort(tokens.begin(), tokens.end());
  const double sum = std::accumulate(tokens.begin(), tokens.end(), 0.0);
  return {static_cast<int64_t>(tokens.size()), sum / static_cast<double>(tokens.size()), tokens.front(),
          tokens[(tokens.size() - 1) / 2], tokens.back()};
}

}  // namespace cairn::rl
