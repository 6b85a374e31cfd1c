// SAPO (Gao 2025, "Soft adaptive policy optimization"): -4/tau sigmoid(tau (r - 1)) A, a smooth gate in
// place of the clip, whose slope at r = 1 is 1; tau is sapo_temperature_pos for A > 0, sapo_temperature_neg else.
// Divides by: tokens of the completion x completions of the step, as grpo.
#include <cmath>

#include "trainer/rl/losses/loss.h"

namespace cairn::rl {
namespace {

Term term(const Token& token, const PolicyOptions& options) {
  const double tau = token.advantage > 0 ? options.sapo_temperature_pos : options.sapo_temperature_neg;
  const double gate = 1 / (1 + std::exp(-tau * (token.ratio - 1)));
  return {.loss = -4 / tau * gate * token.advantage,
          .dlog_ratio = -4 * gate * (1 - gate) * token.advantage * token.ratio};
}

}  // namespace

PolicyLoss sapo() { return {.term = term, .divisor = grpo().divisor}; }

}  // namespace cairn::rl
