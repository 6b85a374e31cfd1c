// f-DPO (Wang 2023, "Beyond reverse KL"): the score of a completion is f'(u) of its ratio u = policy / reference, where
// DPO's reverse KL has log u.
#pragma once

#include "trainer/objectives/preference/options.h"

namespace cairn::preference {

struct Score {
  double value = 0;
  double derivative = 0;  // by log u
};
using Divergence = Score (*)(double log_ratio, const Options&);

// reverse_kl forward_kl js_divergence alpha_divergence; throws std::invalid_argument on another name.
Divergence find_divergence(const std::string& name);

}  // namespace cairn::preference
