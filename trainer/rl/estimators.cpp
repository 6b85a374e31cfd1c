#include "trainer/rl/estimators.h"

#include <cmath>

namespace cairn::rl {

Moments moments(std::span<const double> values) {
  Moments m;
  double sum = 0, squares = 0;
  for (const double x : values) {
    if (!std::isnan(x)) sum += x, ++m.count;
  }
  if (m.count == 0) return m;
  m.mean = sum / static_cast<double>(m.count);
  for (const double x : values) {
    if (!std::isnan(x)) squares += (x - m.mean) * (x - m.mean);
  }
  if (m.count > 1) m.std = std::sqrt(squares / static_cast<double>(m.count - 1));
  return m;
}

std::vector<double> EstimatorInput::after_kl() const {
  std::vector<double> out = rewards;
  for (int64_t b = 0; b < B && !kl.empty(); ++b) {
    for (const int64_t t : at[b]) out[b] -= kl[b * T + t];
  }
  return out;
}

std::vector<double> EstimatorInput::token_rewards() const {
  std::vector<double> out(B * T, 0.0);
  for (int64_t b = 0; b < B; ++b) {
    for (const int64_t t : at[b]) {
      if (!kl.empty()) out[b * T + t] -= kl[b * T + t];
    }
    if (!at[b].empty()) out[b * T + at[b].back()] += rewards[b];
  }
  return out;
}

std::vector<double> EstimatorInput::returns_to_go(const std::vector<double>& token_rewards, double gamma) const {
  std::vector<double> out(B * T, 0.0);
  for (int64_t b = 0; b < B; ++b) {
    double rest = 0;
    for (auto t = at[b].rbegin(); t != at[b].rend(); ++t) {
      rest = token_rewards[b * T + *t] + gamma * rest;
      out[b * T + *t] = rest;
    }
  }
  return out;
}

void whiten(const EstimatorInput& input, std::vector<double>& token_values) {
  std::vector<double> known;
  for (int64_t b = 0; b < input.B; ++b) {
    for (const int64_t t : input.at[b]) {
      if (!std::isnan(input.rewards[b])) known.push_back(token_values[b * input.T + t]);
    }
  }
  const Moments m = moments(known);
  const double scale = m.count > 1 ? 1 / std::sqrt(m.std * m.std + 1e-8) : 0;
  for (int64_t b = 0; b < input.B; ++b) {
    for (const int64_t t : input.at[b]) {
      double& x = token_values[b * input.T + t];
      x = std::isnan(input.rewards[b]) ? 0 : (x - m.mean) * scale;
    }
  }
}

}  // namespace cairn::rl
