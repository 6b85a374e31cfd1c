// loss_type -> what it is made of.
#pragma once

#include <map>
#include <string>

#include "trainer/objectives/preference/pair_terms.h"

namespace cairn::preference {

struct PairLoss {
  PairFunction term = nullptr;
  bool reference = true;    // scores are log-ratios to the reference
  bool averaged = false;    // over the tokens of a completion
  bool divergence = false;  // f_divergence_type may be another than reverse_kl: the term is one of the difference
  bool smoothing = false;   // label_smoothing acts
  enum class Likelihood { none, cpo_alpha, one } likelihood = Likelihood::none;
};
const std::map<std::string, PairLoss>& pair_losses();

}  // namespace cairn::preference
