#include <algorithm>

#include "trainer/rl/losses/loss.h"

namespace cairn::rl {

Term clipped(const Token& token, const PolicyOptions& options) {
  const double r = token.ratio, A = token.advantage;
  const double low = 1 - options.epsilon, high = 1 + options.upper_epsilon();
  const double capped = options.delta ? std::min(r, *options.delta) : r;
  const double free = capped * A, bound = std::clamp(r, low, high) * A;
  const double dfree = capped == r ? r * A : 0, dbound = r >= low && r <= high ? r * A : 0;  // by log r
  Term term{.loss = -std::min(free, bound)};
  term.dlog_ratio = -(free < bound ? dfree : free > bound ? dbound : (dfree + dbound) / 2);
  term.low = capped < low && A < 0;
  term.high = capped > high && A > 0;
  return term;
}

}  // namespace cairn::rl
