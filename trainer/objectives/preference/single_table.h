// loss_type -> the term of a completion.
#pragma once

#include <map>
#include <string>

#include "trainer/objectives/preference/options.h"

namespace cairn::preference {

struct SingleTerm {
  double loss = 0, derivative = 0;
};
struct SingleLoss {
  SingleTerm (*term)(double log_ratio, bool desirable, double kl, double beta);
  bool kl;
};
const std::map<std::string, SingleLoss>& single_losses();

}  // namespace cairn::preference
