// Terms that hang on the difference of the scores, d = chosen - rejected.
#include "trainer/objectives/preference/pair_terms.h"

namespace cairn::preference {

// -log sigmoid(beta d): DPO (Rafailov 2023, eq. 7). With scores averaged over tokens: sigmoid_norm.
PairTerm dpo_sigmoid(const Pair& pair, const Options& options) {
  const double z = options.beta * (pair.chosen - pair.rejected);
  return of_difference(-log_sigmoid(z), -options.beta * sigmoid(-z));
}

// max(0, 1 - beta d): SLiC (Zhao 2023) as RSO (Liu 2023) has it. The corner counts as flat.
PairTerm hinge(const Pair& pair, const Options& options) {
  const double slack = 1 - options.beta * (pair.chosen - pair.rejected);
  return slack > 0 ? of_difference(slack, -options.beta) : PairTerm{};
}

// (d - 1 / (2 beta))^2, scores averaged over tokens: IPO (Azar 2023, eq. 17), beta its tau.
PairTerm ipo(const Pair& pair, const Options& options) {
  const double error = pair.chosen - pair.rejected - 1 / (2 * options.beta);
  return of_difference(error * error, 2 * error);
}

// Robust DPO (Chowdhury 2024): unbiased where a share label_smoothing of the labels is flipped.
PairTerm robust(const Pair& pair, const Options& options) {
  const double e = options.label_smoothing, z = options.beta * (pair.chosen - pair.rejected);
  const double loss = -(1 - e) * log_sigmoid(z) + e * log_sigmoid(-z);
  const double derivative = -(1 - e) * sigmoid(-z) - e * sigmoid(z);
  return of_difference(loss / (1 - 2 * e), options.beta * derivative / (1 - 2 * e));
}

// EXO (Ji 2024, eq. 16): KL of (sigmoid(beta d), sigmoid(-beta d)) from (1 - e, e), e = label_smoothing.
PairTerm exo_pair(const Pair& pair, const Options& options) {
  const double e = options.label_smoothing, z = options.beta * (pair.chosen - pair.rejected);
  const double win = sigmoid(z), lose = sigmoid(-z);
  const double a = log_sigmoid(z) - std::log1p(-e), b = log_sigmoid(-z) - std::log(e);
  return of_difference(win * a + lose * b, options.beta * win * lose * (a - b));
}

// DiscoPOP (Lu 2024, eq. 5): logistic and exponential loss, mixed by sigmoid(beta d / tau).
PairTerm discopop(const Pair& pair, const Options& options) {
  const double z = options.beta * (pair.chosen - pair.rejected), tau = options.discopop_tau;
  const double m = sigmoid(z / tau), dm = m * (1 - m) / tau;
  const double logistic = -log_sigmoid(z), exponential = std::exp(-z);
  const double derivative = -sigmoid(-z) * (1 - m) - exponential * m + dm * (exponential - logistic);
  return of_difference(logistic * (1 - m) + exponential * m, options.beta * derivative);
}

// -(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d), scores without a reference: CPO (Xu 2024, eq. 3), e =
// label_smoothing.
PairTerm smoothed(const Pair& pair, const Options& options) {
  const double e = options.label_smoothing, z = options.beta * (pair.chosen - pair.rejected);
  return of_difference(-(1 - e) * log_sigmoid(z) - e * log_sigmoid(-z),
                       options.beta * (-(1 - e) * sigmoid(-z) + e * sigmoid(z)));
}

// The same with beta d - simpo_gamma, scores averaged over tokens: SimPO (Meng 2024, eq. 6).
PairTerm simpo(const Pair& pair, const Options& options) {
  return smoothed({pair.chosen - options.simpo_gamma / options.beta, pair.rejected}, options);
}

namespace {

// log(1 - exp(x)), x <= 0, without cancellation on either side of log 2.
double log1mexp(double x) { return x < -M_LN2 ? std::log1p(-std::exp(x)) : std::log(-std::expm1(x)); }

}  // namespace

double log_odds(const Pair& pair) {
  return pair.chosen - pair.rejected - (log1mexp(pair.chosen) - log1mexp(pair.rejected));
}

// -beta log sigmoid(log odds ratio), scores averaged over tokens: ORPO (Hong 2024, eq. 6 and 7); its likelihood stands
// beside it.
PairTerm orpo(const Pair& pair, const Options& options) {
  const double z = log_odds(pair), slope = -options.beta * sigmoid(-z);
  return {-options.beta * log_sigmoid(z), slope / -std::expm1(pair.chosen), -slope / -std::expm1(pair.rejected)};
}

}  // namespace cairn::preference
