// RLOO (Ahmadian 2024, "Back to basics"): the reward minus the mean reward of the other completions of the group.
// reward_clip_* act before the KL is taken off; normalize_advantages divides by the std over the batch + 1e-4. A
// completion whose group has no other that is scored gets 0.
#include <cmath>

#include "trainer/rl/estimators.h"

namespace cairn::rl {

Estimate rloo_advantages(const EstimatorInput& input) {
  EstimatorInput clipped = input;
  for (double& r : clipped.rewards) {
    if (input.options.reward_clip_min && r < *input.options.reward_clip_min) r = *input.options.reward_clip_min;
    if (input.options.reward_clip_max && r > *input.options.reward_clip_max) r = *input.options.reward_clip_max;
  }
  const std::vector<double> rewards = clipped.after_kl();
  const int64_t G = input.options.num_generations;
  Estimate out;
  double zeros = 0;
  for (int64_t b = 0; b < input.B; ++b) {
    const Moments group = moments(std::span(rewards).subspan(b / G * G, G));
    zeros += group.std <= 1e-8;
    const double others = static_cast<double>(group.count) - 1;
    const double baseline = others > 0 ? (group.mean * static_cast<double>(group.count) - rewards[b]) / others : kNaN;
    out.advantages.push_back(rewards[b] - baseline);
  }
  out.zero_std = zeros / static_cast<double>(input.B);
  if (input.options.normalize_advantages) {
    const Moments batch = moments(out.advantages);
    for (double& x : out.advantages) x = (x - batch.mean) / (batch.std + 1e-4);
  }
  return out;
}

}  // namespace cairn::rl
