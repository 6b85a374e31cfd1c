// RLOO's loss as TRL's RLOOTrainer has it (Ahmadian 2024, "Back to basics"): the completion is one action, so the ratio
// is that of its whole probability, exp(sum of log pi - sum of log proximal), in the clipped term. Divides by:
// completions of the step; a completion without tokens gives 0.
#include "trainer/rl/losses/loss.h"

namespace cairn::rl {

PolicyLoss rloo() {
  // The term is the same at every token of the completion: its mean over them is the term.
  return {.term = clipped, .divisor = grpo().divisor, .reports = PolicyLoss::Reports::clip_ratio, .summed_ratio = true};
}

}  // namespace cairn::rl
