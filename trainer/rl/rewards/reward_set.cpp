#include "trainer/rl/rewards/reward_set.h"

#include <fmt/format.h>

#include <stdexcept>

namespace cairn::rl {

RewardSet::RewardSet(const std::vector<config::RewardOptions>& options, const std::vector<double>& weights,
                     const RewardContext& context)
    : weights_(weights.empty() ? std::vector<double>(options.size(), 1.0) : weights) {
  if (weights_.size() != options.size())
    throw std::invalid_argument(fmt::format("reward_weights: found {} weights for {} rewards, expected one each",
                                            weights_.size(), options.size()));
  for (const double weight : weights_)
    if (!std::isfinite(weight))
      throw std::invalid_argument(fmt::format("reward_weights: found {}, expected finite numbers", weight));
  for (const auto& option : options) rewards_.push_back(make_reward(option, context));
}

Judgement RewardSet::judge(std::span<const Sample> samples) {
  Judgement out;
  for (const auto& reward : rewards_) out.verdicts.push_back(reward->judge(samples));
  std::vector<double> scores(rewards_.size());
  for (size_t i = 0; i < samples.size(); ++i) {
    for (size_t r = 0; r < scores.size(); ++r) scores[r] = out.verdicts[r][i].reward;
    out.totals.push_back(weighted_sum(scores, weights_));
  }
  return out;
}

std::optional<std::string> RewardSet::answer(const Sample& sample) const {
  for (const auto& reward : rewards_)
    if (auto answer = reward->answer(sample)) return answer;
  return std::nullopt;
}

double weighted_sum(std::span<const double> rewards, std::span<const double> weights) {
  double sum = 0;
  bool any = false;
  for (size_t i = 0; i < rewards.size(); ++i) {
    if (std::isnan(rewards[i])) continue;
    sum += weights[i] * rewards[i];
    any = true;
  }
  return any ? sum : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace cairn::rl
