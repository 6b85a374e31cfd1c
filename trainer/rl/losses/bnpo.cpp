// The clipped term averaged over the tokens of a micro-batch, then over the micro-batches (TRL's bnpo). Divides by:
// tokens of the micro-batch x micro-batches of the step. NOTE: the loss depends on how the step is cut into
// micro-batches; with one completion in each it is GRPO's.
#include "trainer/rl/losses/loss.h"

namespace cairn::rl {

PolicyLoss bnpo() {
  return {.term = clipped,
          .divisor =
              [](const Sizes& sizes, const PolicyOptions&) {
                return sizes.micro_batch_tokens * static_cast<double>(std::max<int64_t>(sizes.step.micro_batches, 1));
              },
          .reports = PolicyLoss::Reports::clip_ratio};
}

}  // namespace cairn::rl
