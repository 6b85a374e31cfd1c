// Dr. GRPO (Liu 2025, "Understanding R1-Zero-like training"): the clipped term summed over the tokens. Divides
// by: completions of the step x max_completion_length, which is a constant: with GRPO's length in its place a right
// answer is pushed the more the shorter it is, a wrong one pushed away the less the longer it is.
#include "trainer/rl/losses/loss.h"

namespace cairn::rl {

PolicyLoss dr_grpo() {
  return {.term = clipped,
          .divisor =
              [](const Sizes& sizes, const PolicyOptions& options) {
                return static_cast<double>(sizes.step.completions) * static_cast<double>(options.max_completion_length);
              },
          .reports = PolicyLoss::Reports::clip_ratio};
}

}  // namespace cairn::rl
