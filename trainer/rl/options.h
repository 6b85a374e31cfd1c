// Settings of fine-tuning by reinforcement. Names, defaults and meaning are those of TRL 1.16's GRPOConfig, except
// where a comment says otherwise; `advantage_estimator` takes verl's names.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace cairn::rl {

struct PolicyOptions {
  std::string loss_type = "dapo";                   // the table of losses/table.cpp
  std::string importance_sampling_level = "token";  // token sequence
  double epsilon = 0.2;
  std::optional<double> epsilon_high;  // null: epsilon; cispo: the cap itself, which has to be given
  std::optional<double> delta;         // largest ratio of the unclipped term
  double beta = 0;                     // KL coefficient
  std::string kl_estimator = "k3";     // ours: k1 k2 k3
  bool kl_in_reward = false;           // ours: the KL is taken off the reward instead of being added to the loss
  bool use_bias_correction_kl = true;  // the KL of the loss is multiplied by the ratio, which is differentiated too
  bool mask_truncated_completions = false;
  double top_entropy_quantile = 1.0;  // share of the tokens, those of highest entropy, that are learnt from
  std::optional<double> off_policy_mask_threshold;  // nats a token
  double sapo_temperature_neg = 1.05, sapo_temperature_pos = 1.0;
  double vespo_k_pos = 2.0, vespo_lambda_pos = 3.0, vespo_k_neg = 3.0, vespo_lambda_neg = 2.0;
  int64_t max_completion_length = 512;

  double entropy_coef = 0.0;
  bool use_adaptive_entropy = false;
  double entropy_coef_min = 0.0, entropy_coef_max = 1.0, entropy_coef_delta = 0.005, entropy_target = 0.2;

  // Proximal policy over the policy that sampled. TRL names these after the engine that it samples with.
  bool vllm_importance_sampling_correction = true;
  std::string vllm_importance_sampling_mode = "sequence_mask";  // {token, sequence}_{truncate, mask}
  std::optional<double> vllm_importance_sampling_clip_max = 3.0, vllm_importance_sampling_clip_min;

  double upper_epsilon() const { return epsilon_high.value_or(epsilon); }
  bool operator==(const PolicyOptions&) const = default;
};

struct AdvantageOptions {
  std::string advantage_estimator = "grpo";  // the table of advantages.cpp
  int64_t num_generations = 8;
  std::vector<double> reward_weights;                              // empty: 1 for each reward function
  std::string multi_objective_aggregation = "sum_then_normalize";  // or normalize_then_sum
  std::string scale_rewards = "group";                             // group batch none
  bool normalize_advantages = false;                               // of TRL's RLOOConfig, rloo alone
  std::optional<double> reward_clip_min, reward_clip_max;          // its reward_clip_range, rloo alone
  double gamma = 1.0, lam = 1.0;                                   // verl's; gae and reinforce_plus_plus
  bool operator==(const AdvantageOptions&) const = default;
};

// Throws std::invalid_argument naming the key, the value and the reason where a setting is out of its range or settings
// contradict one another. Returns a sentence for each that is allowed but has no effect or is not what its paper does.
std::vector<std::string> check(const PolicyOptions& policy, const AdvantageOptions& advantage);

}  // namespace cairn::rl
