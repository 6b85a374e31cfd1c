// From rewards to advantages, for all completions of a step (over all ranks) at once. The estimators, by verl's names:
// advantages.cpp and the file of each.
#pragma once

#include <ATen/ATen.h>

#include "trainer/metrics/tally.h"
#include "trainer/rl/options.h"

namespace cairn::rl {

// B completions, num_generations of the same prompt one after another; float32, contiguous, on the CPU.
struct AdvantageBatch {
  at::Tensor rewards;         // [B, F], one column a reward function; NaN where it does not apply
  at::Tensor greedy_rewards;  // [B], of the greedy completion of the same prompt: remax
  at::Tensor mask;            // bool [B, T], truncated completions too; where advantages are by token or beta != 0
  at::Tensor old_logprobs, ref_logprobs;  // [B, T]; where the KL is in the reward
  at::Tensor values;                      // [B, T], of the critic before each token: gae
  std::vector<std::string> names;         // of the reward functions, for the metrics; empty: none
};

struct Advantages {
  at::Tensor advantages;  // float32 [B], or [B, T] with 0 where the mask is false
  at::Tensor returns;     // float32 [B, T]: what the critic learns; gae alone
  at::Tensor rewards;     // float32 [B]: weighted sums; NaN where no function applies, and the advantage is 0 there
  at::Tensor spread;      // bool [B / num_generations]: the rewards of the group differ, so that it teaches something
  Tally metrics;          // reward, reward_std, frac_reward_zero_std, rewards/NAME/{mean, std}, kl
};

// Throws std::invalid_argument where tensors do not fit, or one that the estimator needs is missing. The options have
// passed check().
Advantages advantages(const AdvantageBatch& batch, const PolicyOptions& policy, const AdvantageOptions& options);

// Soft overlong punishment (DAPO, eq. 13): 0 up to max_completion_len - soft_punish_cache tokens, from there down to -1
// at max_completion_len, -1 beyond. TRL's names. Throws std::invalid_argument where the cache is not in [0, max].
double soft_overlong_punishment(int64_t length, int64_t max_completion_len, int64_t soft_punish_cache);

}  // namespace cairn::rl
