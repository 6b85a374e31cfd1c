// REINFORCE++ and ReMax. Tokens outside the mask are passed over: what comes after them counts as what comes next.
#include <cmath>

#include "trainer/rl/estimators.h"

namespace cairn::rl {

// REINFORCE++ (Hu 2025): the completion's reward at its last token, the KL taken off at each; the discounted sum from a
// token on, whitened over all tokens of the batch.
Estimate reinforce_plus_plus(const EstimatorInput& input) {
  Estimate out{.advantages = input.returns_to_go(input.token_rewards(), input.options.gamma)};
  whiten(input, out.advantages);
  return out;
}

// REINFORCE++-baseline: the reward minus the mean of the group, at every token, whitened over all tokens of the batch.
Estimate reinforce_plus_plus_baseline(const EstimatorInput& input) {
  const std::vector<double> rewards = input.after_kl();
  const int64_t G = input.options.num_generations;
  Estimate out{.advantages = std::vector<double>(input.B * input.T, 0.0)};
  double zeros = 0;
  for (int64_t b = 0; b < input.B; ++b) {
    const Moments group = moments(std::span(rewards).subspan(b / G * G, G));
    zeros += group.std <= 1e-8;
    for (const int64_t t : input.at[b]) out.advantages[b * input.T + t] = rewards[b] - group.mean;
  }
  out.zero_std = zeros / static_cast<double>(input.B);
  whiten(input, out.advantages);
  return out;
}

// ReMax (Li 2023): the sum from a token on minus the reward of the greedy completion of the same prompt.
Estimate remax_advantages(const EstimatorInput& input) {
  if (!input.batch.greedy_rewards.defined() || input.batch.greedy_rewards.numel() != input.B ||
      input.batch.greedy_rewards.scalar_type() != at::kFloat)
    throw std::invalid_argument("[advantages] greedy_rewards: remax needs the greedy completion's reward, float32 [B]");
  Estimate out{.advantages = input.returns_to_go(input.token_rewards(), 1.0)};
  const float* greedy = input.batch.greedy_rewards.const_data_ptr<float>();
  for (int64_t b = 0; b < input.B; ++b) {
    for (const int64_t t : input.at[b]) out.advantages[b * input.T + t] -= greedy[b];
  }
  return out;
}

}  // namespace cairn::rl
