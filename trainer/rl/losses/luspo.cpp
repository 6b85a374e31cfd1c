// LUSPO (2026, "Length-unbiased sequence policy optimization"): GSPO's clipped term of a completion times its length,
// which is the sum over its tokens. Divides by: completions of the step. Meant for importance_sampling_level
// `sequence`.
#include "trainer/rl/losses/loss.h"

namespace cairn::rl {

PolicyLoss luspo() {
  return {
      .term = clipped,
      .divisor = [](const Sizes& sizes, const PolicyOptions&) { return static_cast<double>(sizes.step.completions); },
      .reports = PolicyLoss::Reports::clip_ratio};
}

}  // namespace cairn::rl
