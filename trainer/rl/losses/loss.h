// What a policy loss is made of: a term for every token, and what the sum of the terms is divided by.
#pragma once

#include <map>
#include <span>
#include <string>

#include "trainer/rl/policy_loss.h"

namespace cairn::rl {

struct Token {
  double ratio = 1;  // pi / proximal, of the token or of its completion
  double advantage = 0;
  double logp = 0;
  double log_weight = 0;  // of the completion; what PolicyLoss::log_weight says
};

struct Term {
  double loss = 0;
  double dlog_ratio = 0;           // by log(ratio)
  double dlogp = 0;                // by logp where the loss holds it beside the ratio
  bool low = false, high = false;  // the ratio is outside the region, on the side where that matters
  double weight = 0;               // the loss's own weight of the completion, for the metrics
};

// How much there is: of the token's completion, of its micro-batch, of the step.
struct Sizes {
  double completion_tokens, micro_batch_tokens;  // at least 1
  const PolicyCounts& step;
};

struct PolicyLoss {
  enum class Reports { nothing, clip_ratio, cispo_clip_ratio, phi };

  Term (*term)(const Token&, const PolicyOptions&);
  double (*divisor)(const Sizes&, const PolicyOptions&);
  Reports reports = Reports::nothing;
  bool summed_ratio = false;  // the ratio is that of the completion's whole probability
  // log(pi / proximal) and the rollout weights of the tokens of a completion -> Token::log_weight. Such a loss takes
  // the rollout weights in by itself.
  double (*log_weight)(std::span<const double> log_ratios, std::span<const double> rollout_weights) = nullptr;
};

// Throws std::invalid_argument on a name that is not in the table.
const PolicyLoss& find_policy_loss(const std::string& loss_type);

// One file each.
PolicyLoss grpo(), bnpo(), dr_grpo(), dapo(), cispo(), sapo(), luspo(), vespo(), rloo();

// -min(min(r, delta) A, clip(r, 1 - epsilon, 1 + epsilon_high) A): Schulman 2017 (PPO), eq. 7, with the two epsilons of
// DAPO and the cap of INTELLECT-2 (2025). Where both sides are equal each gives half of the derivative.
Term clipped(const Token& token, const PolicyOptions& options);

}  // namespace cairn::rl
