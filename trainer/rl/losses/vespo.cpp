// VESPO (2026, "Variational sequence-level soft policy optimization"): -sg(phi(w)) A log pi with phi(w) = exp(lambda)
// w^k exp(-lambda w), which is 1 at w = 1; w the ratio of the completion's whole probability, rollout weights included,
// k and lambda by the sign of A. Divides by: completion tokens of the step, over all ranks.
#include <algorithm>
#include <cmath>

#include "trainer/rl/losses/loss.h"

namespace cairn::rl {
namespace {

constexpr double kHighest = 20;         // of a log-ratio
const double kLowest = std::log(1e-8);  // of the completion's

double log_weight(std::span<const double> log_ratios, std::span<const double> rollout_weights) {
  double sum = 0, rollout = 0;
  for (const double x : log_ratios) sum += std::clamp(x, -kHighest, kHighest);
  for (const double w : rollout_weights) rollout += std::clamp(std::log(w), kLowest, kHighest);
  return std::clamp(sum + rollout, kLowest, kHighest);
}

Term term(const Token& token, const PolicyOptions& options) {
  const bool good = token.advantage >= 0;
  const double k = good ? options.vespo_k_pos : options.vespo_k_neg;
  const double lambda = std::max(good ? options.vespo_lambda_pos : options.vespo_lambda_neg, 1e-4);
  const double phi = std::exp(lambda + k * token.log_weight - lambda * std::exp(token.log_weight));
  return {.loss = -phi * token.advantage * token.logp, .dlogp = -phi * token.advantage, .weight = phi};
}

}  // namespace

PolicyLoss vespo() {
  return {.term = term, .divisor = dapo().divisor, .reports = PolicyLoss::Reports::phi, .log_weight = log_weight};
}

}  // namespace cairn::rl
