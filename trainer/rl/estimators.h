// What the advantage estimators share. One file each.
#pragma once

#include <limits>
#include <span>

#include "trainer/rl/advantages.h"

namespace cairn::rl {

inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Mean and Bessel-corrected standard deviation of what is a number; NaN of nothing, the deviation of one number too.
struct Moments {
  double mean = kNaN, std = kNaN;
  int64_t count = 0;
};
Moments moments(std::span<const double> values);

// What an estimator sees: rewards as they are weighted, and the KL that is to be taken off.
struct EstimatorInput {
  const AdvantageBatch& batch;
  const AdvantageOptions& options;
  int64_t B = 0, F = 0, T = 0;
  std::vector<double> weights;           // [F]
  std::vector<double> rewards;           // [B]; NaN: no function applies. The KL is not in them
  std::vector<double> kl;                // [B * T]: beta * KL of each token; empty: none in the reward
  std::vector<std::vector<int64_t>> at;  // [B]: positions under the mask; empty without a mask

  // Rewards of whole completions with the KL of all their tokens taken off.
  std::vector<double> after_kl() const;
  // Of each token: its KL taken off, and the completion's reward at its last token. [B * T]
  std::vector<double> token_rewards() const;
  // Writes to `out` at each token the sum of what comes from there on, discounted by gamma a token. [B * T]
  std::vector<double> returns_to_go(const std::vector<double>& rewards, double gamma) const;
};

// What comes out before it is float32: [B] or [B * T].
struct Estimate {
  std::vector<double> advantages, returns;
  double zero_std = kNaN;  // share of the completions whose rewards have no spread to be divided by
};
struct EstimatorEntry {
  Estimate (*estimate)(const EstimatorInput&);
  bool by_token;  // its advantages are [B, T]
  bool groups;    // its baseline is that of a group
};
// Throws std::invalid_argument on a name that is not in the table.
const EstimatorEntry& find_estimator(const std::string& name);

// Mean 0 and variance 1 over all tokens under the mask: (x - mean) / sqrt(variance + 1e-8), as verl's masked_whiten.
// Completions whose reward is NaN are passed over and get 0.
void whiten(const EstimatorInput& input, std::vector<double>& token_values);

Estimate grpo_advantages(const EstimatorInput& input);
Estimate rloo_advantages(const EstimatorInput& input);
Estimate reinforce_plus_plus(const EstimatorInput& input);
Estimate reinforce_plus_plus_baseline(const EstimatorInput& input);
Estimate remax_advantages(const EstimatorInput& input);
Estimate gae_advantages(const EstimatorInput& input);

}  // namespace cairn::rl
