// DAPO (Yu 2025, eq. 8): the clipped term, with epsilon_high above epsilon ("clip higher"), averaged over all
// tokens. Divides by: completion tokens of the step, over all ranks. With advantages [B, T] this is PPO's policy loss.
#include "trainer/rl/losses/loss.h"

namespace cairn::rl {

PolicyLoss dapo() {
  return {.term = clipped,
          .divisor = [](const Sizes& sizes,
                        const PolicyOptions&) { return static_cast<double>(std::max<int64_t>(sizes.step.tokens, 1)); },
          .reports = PolicyLoss::Reports::clip_ratio};
}

}  // namespace cairn::rl
