// CISPO (MiniMax-M1 2025): -sg(min(r, epsilon_high)) A log pi. The weight is capped and held constant, so
// no token loses its gradient. The cap is epsilon_high itself, not 1 + epsilon (Khatri 2025, ScaleRL: 5). Divides by:
// completion tokens of the step, over all ranks.
#include "trainer/rl/losses/loss.h"

namespace cairn::rl {
namespace {

Term term(const Token& token, const PolicyOptions& options) {
  const double cap = options.upper_epsilon(), weight = std::min(token.ratio, cap);
  return {.loss = -weight * token.advantage * token.logp,
          .dlogp = -weight * token.advantage,
          .high = token.ratio > cap && token.advantage > 0};
}

}  // namespace

PolicyLoss cispo() {
  return {.term = term, .divisor = dapo().divisor, .reports = PolicyLoss::Reports::cispo_clip_ratio};
}

}  // namespace cairn::rl
