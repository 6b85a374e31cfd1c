// Terms in which each completion stands for itself. c and r: scores times beta.
#include "trainer/objectives/preference/pair_terms.h"

namespace cairn::preference {

// -log sigmoid(c) - (log sigmoid(-c) + log sigmoid(-r)) / 2: NCA (Chen 2024).
PairTerm nca_pair(const Pair& pair, const Options& options) {
  const double b = options.beta, c = b * pair.chosen, r = b * pair.rejected;
  return {-log_sigmoid(c) - 0.5 * log_sigmoid(-c) - 0.5 * log_sigmoid(-r), b * (-sigmoid(-c) + 0.5 * sigmoid(c)),
          b * 0.5 * sigmoid(r)};
}

// -log sigmoid(c) - log sigmoid(-r): BCO (Jung 2024) of pairs, without its running mean.
PairTerm bco_pair(const Pair& pair, const Options& options) {
  const double b = options.beta, c = b * pair.chosen, r = b * pair.rejected;
  return {-log_sigmoid(c) - log_sigmoid(-r), -b * sigmoid(-c), b * sigmoid(r)};
}

// (chosen - 1 / (2 beta))^2 + (rejected + 1 / (2 beta))^2: SPPO (Wu 2024, eq. 4.7) with a sure winner.
PairTerm sppo_hard(const Pair& pair, const Options& options) {
  const double c = pair.chosen - 0.5 / options.beta, r = pair.rejected + 0.5 / options.beta;
  return {c * c + r * r, 2 * c, 2 * r};
}

// 1 - sigmoid(c) + sigmoid(r): APO-zero (D'Oosterlinck 2024, eq. 7).
PairTerm apo_zero(const Pair& pair, const Options& options) {
  const double b = options.beta, c = sigmoid(b * pair.chosen), r = sigmoid(b * pair.rejected);
  return {1 - c + r, -b * c * (1 - c), b * r * (1 - r)};
}

// sigmoid(c) + 1 - sigmoid(c - r): APO-down (eq. 8).
PairTerm apo_down(const Pair& pair, const Options& options) {
  const double b = options.beta, c = sigmoid(b * pair.chosen), d = sigmoid(b * (pair.chosen - pair.rejected));
  return {c + 1 - d, b * (c * (1 - c) - d * (1 - d)), b * d * (1 - d)};
}

}  // namespace cairn::preference
