#include "trainer/rl/options.h"

#include <cmath>

#include "trainer/rl/estimators.h"
#include "trainer/rl/kl.h"
#include "trainer/rl/losses/loss.h"
#include "trainer/rl/names.h"
#include "trainer/rl/rollout_weights.h"

namespace cairn::rl {
namespace {

const std::map<std::string, int> kLevels = {{"token", 0}, {"sequence", 1}};
const std::map<std::string, int> kScales = {{"group", 0}, {"batch", 0}, {"none", 0}};
const std::map<std::string, int> kAggregations = {{"sum_then_normalize", 0}, {"normalize_then_sum", 1}};

template <class... Args>
[[noreturn]] void refuse(fmt::format_string<Args...> text, Args&&... args) {
  throw std::invalid_argument(fmt::format(text, std::forward<Args>(args)...));
}
void positive(const char* key, double value) {
  if (!(value > 0) || !std::isfinite(value)) refuse("{}: {} is not positive", key, value);
}
void at_least_0(const char* key, double value) {
  if (!(value >= 0) || !std::isfinite(value)) refuse("{}: {} is negative or no number", key, value);
}
void share(const char* key, double value) {
  if (!(value >= 0 && value <= 1)) refuse("{}: {} is not between 0 and 1", key, value);
}

void check_ranges(const PolicyOptions& p) {
  at_least_0("epsilon", p.epsilon);
  if (p.epsilon > 1) refuse("epsilon: {} is above 1: a ratio never falls below 1 - epsilon", p.epsilon);
  if (p.epsilon_high) at_least_0("epsilon_high", *p.epsilon_high);
  if (p.delta) positive("delta", *p.delta);
  at_least_0("beta", p.beta);
  share("top_entropy_quantile", p.top_entropy_quantile);
  if (p.off_policy_mask_threshold) positive("off_policy_mask_threshold", *p.off_policy_mask_threshold);
  positive("sapo_temperature_neg", p.sapo_temperature_neg);
  positive("sapo_temperature_pos", p.sapo_temperature_pos);
  at_least_0("vespo_k_pos", p.vespo_k_pos), at_least_0("vespo_k_neg", p.vespo_k_neg);
  at_least_0("vespo_lambda_pos", p.vespo_lambda_pos), at_least_0("vespo_lambda_neg", p.vespo_lambda_neg);
  if (p.max_completion_length < 1) refuse("max_completion_length: {} is not positive", p.max_completion_length);
  if (!std::isfinite(p.entropy_coef)) refuse("entropy_coef: {} is no number", p.entropy_coef);
  if (p.entropy_coef_min > p.entropy_coef_max)
    refuse("entropy_coef_min: {} is above entropy_coef_max {}", p.entropy_coef_min, p.entropy_coef_max);
  at_least_0("entropy_coef_delta", p.entropy_coef_delta);
}

void check_correction(const PolicyOptions& p) {
  if (!p.vllm_importance_sampling_correction) return;
  const auto &low = p.vllm_importance_sampling_clip_min, &high = p.vllm_importance_sampling_clip_max;
  const std::string& mode = p.vllm_importance_sampling_mode;
  const bool sequence = find_rollout_mode(mode).sequence;
  if (high) positive("vllm_importance_sampling_clip_max", *high);
  if (low && high && *low >= *high)
    refuse("vllm_importance_sampling_clip_min: {} is not below vllm_importance_sampling_clip_max {}", *low, *high);
  if (!low && !high && mode.ends_with("truncate"))
    refuse("vllm_importance_sampling_mode: {} needs vllm_importance_sampling_clip_min or _max", mode);
  if (p.loss_type == "vespo" && sequence) {
    refuse(
        "vllm_importance_sampling_mode: {} with loss_type vespo, which weighs whole completions itself: use "
        "token_truncate or token_mask",
        mode);
  }
}

void check_policy(const PolicyOptions& p, std::vector<std::string>& said) {
  check_ranges(p);
  const PolicyLoss& loss = find_policy_loss(p.loss_type);
  const bool sequence = find_name(kLevels, "importance_sampling_level", p.importance_sampling_level) != 0;
  find_kl_estimator(p.kl_estimator);
  check_correction(p);
  if (p.loss_type == "cispo" && !p.epsilon_high)
    refuse("epsilon_high: not set, but loss_type cispo caps the ratio at epsilon_high itself (the usual cap is 5)");
  if (p.delta && loss.term != clipped)
    refuse("delta: {} caps the unclipped term of a clipped loss; loss_type {} has none", *p.delta, p.loss_type);
  if (p.beta != 0 && !p.kl_in_reward && p.kl_estimator == "k1" && !p.use_bias_correction_kl) {
    refuse(
        "kl_estimator: k1 as a loss has a gradient whose mean is 0 on the policy's own samples; set "
        "use_bias_correction_kl, or kl_in_reward, or take k2 or k3");
  }
  if (p.loss_type == "rloo" && sequence)
    refuse("importance_sampling_level: sequence with loss_type rloo, whose ratio is that of the sum, not of the mean");

  if (p.loss_type == "bnpo")
    said.push_back("loss_type bnpo divides by the tokens of each micro-batch: the result depends on train.micro_batch");
  if (sequence &&
      (p.loss_type == "bnpo" || p.loss_type == "dr_grpo" || p.loss_type == "dapo" || p.loss_type == "cispo"))
    said.push_back(
        fmt::format("importance_sampling_level sequence with loss_type {} weighs a completion by its length; "
                    "GSPO's loss is loss_type grpo",
                    p.loss_type));
  if (!sequence && p.loss_type == "luspo")
    said.push_back("loss_type luspo is meant for importance_sampling_level sequence");
  if (sequence && p.loss_type == "vespo")
    said.push_back(
        "importance_sampling_level sequence has no effect on loss_type vespo, which weighs completions itself");
  if (p.epsilon_high && (p.loss_type == "sapo" || p.loss_type == "vespo"))
    said.push_back(fmt::format("epsilon_high has no effect on loss_type {}, which does not clip", p.loss_type));
  if (p.delta && *p.delta <= 1 + p.upper_epsilon())
    said.push_back(fmt::format("delta {} is not above 1 + epsilon_high {}", *p.delta, 1 + p.upper_epsilon()));
  if (p.kl_in_reward && p.beta == 0) said.push_back("kl_in_reward has no effect with beta 0");
}

void check_advantage(const PolicyOptions& p, const AdvantageOptions& a, std::vector<std::string>& said) {
  const EstimatorEntry& traits = find_estimator(a.advantage_estimator);
  const bool grpo = a.advantage_estimator == "grpo";
  const bool normalize_first =
      find_name(kAggregations, "multi_objective_aggregation", a.multi_objective_aggregation) != 0;
  find_name(kScales, "scale_rewards", a.scale_rewards);
  share("gamma", a.gamma), share("lam", a.lam);
  if (a.num_generations < 1) refuse("num_generations: {} is not positive", a.num_generations);
  if (traits.groups && a.num_generations < 2)
    refuse("num_generations: 1 with advantage_estimator {}: the baseline is that of the group, so every advantage is 0",
           a.advantage_estimator);
  if (normalize_first && p.kl_in_reward && p.beta != 0)
    refuse("kl_in_reward: with multi_objective_aggregation normalize_then_sum there is no one reward to take it off");
  if (normalize_first && !grpo)
    refuse("multi_objective_aggregation: normalize_then_sum is of advantage_estimator grpo, not of {}",
           a.advantage_estimator);
  for (const double weight : a.reward_weights) {
    if (!std::isfinite(weight)) refuse("reward_weights: {} is no number", weight);
  }
  const bool rloo = a.advantage_estimator == "rloo";
  if (!rloo && a.normalize_advantages)
    refuse("normalize_advantages: it is of advantage_estimator rloo, not of {}", a.advantage_estimator);
  if (!rloo && (a.reward_clip_min || a.reward_clip_max))
    refuse("reward_clip_min, reward_clip_max: they are of advantage_estimator rloo, not of {}", a.advantage_estimator);
  if (a.reward_clip_min && a.reward_clip_max && *a.reward_clip_min > *a.reward_clip_max)
    refuse("reward_clip_min: {} is above reward_clip_max {}", *a.reward_clip_min, *a.reward_clip_max);
  if (p.loss_type == "rloo" && traits.by_token)
    refuse("loss_type: rloo takes one advantage a completion, advantage_estimator {} gives one a token",
           a.advantage_estimator);

  if (!grpo && a.scale_rewards != "group")
    said.push_back(fmt::format("scale_rewards has no effect on advantage_estimator {}", a.advantage_estimator));
  if (a.advantage_estimator == "reinforce_plus_plus" && p.beta != 0 && !(p.kl_in_reward && p.kl_estimator == "k1"))
    said.push_back("REINFORCE++ has its KL in the reward: kl_in_reward true, kl_estimator k1");
  if (a.advantage_estimator == "reinforce_plus_plus_baseline" && p.beta != 0 &&
      (p.kl_in_reward || p.kl_estimator != "k2"))
    said.push_back("REINFORCE++-baseline has its KL in the loss: kl_in_reward false, kl_estimator k2");
  if (rloo && p.beta != 0 && !(p.kl_in_reward && p.kl_estimator == "k1"))
    said.push_back("TRL's RLOO has its KL in the reward: kl_in_reward true, kl_estimator k1");
}

}  // namespace

std::vector<std::string> check(const PolicyOptions& policy, const AdvantageOptions& advantage) {
  std::vector<std::string> said;
  check_policy(policy, said);
  check_advantage(policy, advantage, said);
  return said;
}

}  // namespace cairn::rl
