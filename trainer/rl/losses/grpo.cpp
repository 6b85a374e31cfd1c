// GRPO (Shao 2024, DeepSeekMath, eq. 3): the clipped term, averaged over the tokens of a completion, then over the
// completions. Divides by: tokens of the completion x completions of the step. So a token of a short completion weighs
// more than one of a long one: dr_grpo says what is wrong with that. With importance_sampling_level `sequence` this is
// GSPO (Zheng 2025).
#include "trainer/rl/losses/loss.h"

namespace cairn::rl {

PolicyLoss grpo() {
  return {.term = clipped,
          .divisor =
              [](const Sizes& sizes, const PolicyOptions&) {
                return sizes.completion_tokens * static_cast<double>(sizes.step.completions);
              },
          .reports = PolicyLoss::Reports::clip_ratio};
}

}  // namespace cairn::rl
