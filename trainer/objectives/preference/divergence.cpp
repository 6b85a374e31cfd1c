#include "trainer/objectives/preference/divergence.h"

#include <cmath>

#include "trainer/objectives/preference/pair_terms.h"
#include "trainer/rl/names.h"

namespace cairn::preference {
namespace {

Score reverse_kl(double log_ratio, const Options&) { return {log_ratio, 1}; }

// 1 - 1 / u
Score forward_kl(double log_ratio, const Options&) { return {-std::expm1(-log_ratio), std::exp(-log_ratio)}; }

// log(2 u / (1 + u))
Score js_divergence(double log_ratio, const Options&) { return {M_LN2 + log_sigmoid(log_ratio), sigmoid(-log_ratio)}; }

// (u^(alpha - 1) - 1) / (alpha - 1), which is log u at alpha = 1. NOTE: the exponent is capped at 80 as in TRL, and
// nothing flows beyond.
Score alpha_divergence(double log_ratio, const Options& options) {
  constexpr double kLargest = 80;
  const double power = options.f_alpha_divergence_coef - 1, exponent = power * log_ratio;
  if (std::abs(power) < 1e-6) return {log_ratio, 1};
  if (exponent > kLargest) return {std::expm1(kLargest) / power, 0};
  return {std::expm1(exponent) / power, std::exp(exponent)};
}

}  // namespace

Divergence find_divergence(const std::string& name) {
  static const std::map<std::string, Divergence> table = {{"reverse_kl", reverse_kl},
                                                          {"forward_kl", forward_kl},
                                                          {"js_divergence", js_divergence},
                                                          {"alpha_divergence", alpha_divergence}};
  return rl::find_name(table, "f_divergence_type", name);
}

}  // namespace cairn::preference
