// Several rewards at once and their weighted sum, as TRL's GRPO trainer forms it.
#pragma once

#include <memory>
#include <vector>

#include "trainer/rl/rewards/reward.h"

namespace cairn::rl {

struct Judgement {
  std::vector<std::vector<Verdict>> verdicts;  // [rewards][samples]
  std::vector<double> totals;                  // [samples]; NaN: no reward has a verdict
};

class RewardSet {
 public:
  // `weights`: reward_weights, one a reward; empty: 1 each. Throws std::invalid_argument for another number of them or
  // one that is not finite.
  RewardSet(const std::vector<config::RewardOptions>& options, const std::vector<double>& weights,
            const RewardContext& context);

  size_t size() const { return rewards_.size(); }
  const Reward& reward(size_t i) const { return *rewards_[i]; }
  double weight(size_t i) const { return weights_[i]; }

  Judgement judge(std::span<const Sample> samples);
  // The first reward's answer that there is (Reward::answer).
  std::optional<std::string> answer(const Sample& sample) const;

 private:
  std::vector<std::unique_ptr<Reward>> rewards_;
  std::vector<double> weights_;
};

// Sum of weight times reward over the rewards with a verdict; NaN where there are none. rewards, weights: [rewards].
double weighted_sum(std::span<const double> rewards, std::span<const double> weights);

}  // namespace cairn::rl
