#include "trainer/rl/advantages.h"

#include <cmath>

#include "models/kernels/check.h"
#include "trainer/rl/estimators.h"
#include "trainer/rl/kl.h"
#include "trainer/rl/names.h"

namespace cairn::rl {
namespace {

constexpr const char* kPlace = "advantages";

EstimatorInput weigh(const AdvantageBatch& batch, const AdvantageOptions& options) {
  if (!batch.rewards.defined() || batch.rewards.dim() != 2)
    throw std::invalid_argument(
        fmt::format("[{}] rewards: expected [B, F], got {}", kPlace, kernels::describe(batch.rewards)));
  EstimatorInput input{batch, options, batch.rewards.size(0), batch.rewards.size(1)};
  kernels::check_floats(batch.rewards, {input.B, input.F}, kPlace, "rewards");
  if (input.B % options.num_generations != 0) {
    throw std::invalid_argument(fmt::format("[{}] {} completions are no whole groups of num_generations {}", kPlace,
                                            input.B, options.num_generations));
  }
  input.weights = options.reward_weights.empty() ? std::vector<double>(input.F, 1.0) : options.reward_weights;
  if (static_cast<int64_t>(input.weights.size()) != input.F) {
    throw std::invalid_argument(
        fmt::format("reward_weights: {} weights for {} reward functions", input.weights.size(), input.F));
  }
  const float* reward = batch.rewards.const_data_ptr<float>();
  for (int64_t b = 0; b < input.B; ++b) {
    double sum = 0;
    bool any = false;
    for (int64_t f = 0; f < input.F; ++f) {
      const float r = reward[b * input.F + f];
      if (!std::isnan(r)) sum += input.weights[f] * r, any = true;
    }
    input.rewards.push_back(any ? sum : kNaN);
  }
  return input;
}

void find_tokens(EstimatorInput& input) {
  const at::Tensor& mask = input.batch.mask;
  input.T = mask.defined() && mask.dim() == 2 ? mask.size(1) : 0;
  kernels::check_tensor(mask, at::kBool, {input.B, input.T}, kPlace, "mask");
  const bool* counts = mask.const_data_ptr<bool>();
  input.at.resize(input.B);
  for (int64_t i = 0; i < input.B * input.T; ++i) {
    if (counts[i]) input.at[i / input.T].push_back(i % input.T);
  }
}

at::Tensor to_tensor(const std::vector<double>& values, at::IntArrayRef shape) {
  return at::tensor(values, at::kDouble).to(at::kFloat).view(shape);
}

void report(const EstimatorInput& input, double zero_std, Advantages& out) {
  const auto& names = input.batch.names;
  if (!names.empty() && static_cast<int64_t>(names.size()) != input.F) {
    throw std::invalid_argument(fmt::format("[{}] {} names for {} reward functions", kPlace, names.size(), input.F));
  }
  const float* reward = input.batch.rewards.const_data_ptr<float>();
  for (size_t f = 0; f < names.size(); ++f) {
    std::vector<double> column;
    for (int64_t b = 0; b < input.B; ++b) column.push_back(reward[b * input.F + static_cast<int64_t>(f)]);
    const Moments m = moments(column);
    out.metrics.mean("rewards/" + names[f] + "/mean", m.mean, 1);
    out.metrics.mean("rewards/" + names[f] + "/std", m.std, 1);
  }
  const Moments m = moments(input.rewards);
  out.metrics.mean("reward", m.mean, 1);
  out.metrics.mean("reward_std", m.std, 1);
  out.metrics.mean("frac_reward_zero_std", zero_std, 1);
}

}  // namespace

// advantage_estimator -> function. To add one: a file beside this, its name in estimators.h and a line here.
const EstimatorEntry& find_estimator(const std::string& name) {
  static const std::map<std::string, EstimatorEntry> table = {
      // {function, by token, groups}
      {"gae", {gae_advantages, true, false}},
      {"grpo", {grpo_advantages, false, true}},
      {"reinforce_plus_plus", {reinforce_plus_plus, true, false}},
      {"reinforce_plus_plus_baseline", {reinforce_plus_plus_baseline, true, true}},
      {"remax", {remax_advantages, true, false}},
      {"rloo", {rloo_advantages, false, true}},
  };
  return find_name(table, "advantage_estimator", name);
}

Advantages advantages(const AdvantageBatch& batch, const PolicyOptions& policy, const AdvantageOptions& options) {
  const EstimatorEntry& entry = find_estimator(options.advantage_estimator);
  const bool kl_in_reward = policy.kl_in_reward && policy.beta != 0;
  EstimatorInput input = weigh(batch, options);
  if (entry.by_token || kl_in_reward) find_tokens(input);

  Advantages out;
  if (kl_in_reward) {
    const at::Tensor kl = kl_per_token(policy.kl_estimator, batch.old_logprobs, batch.ref_logprobs, batch.mask);
    double sum = 0, tokens = 0;
    for (int64_t i = 0; i < input.B * input.T; ++i) {
      const double value = kl.const_data_ptr<float>()[i];
      input.kl.push_back(policy.beta * value);
      sum += value;
    }
    for (const auto& at : input.at) tokens += static_cast<double>(at.size());
    out.metrics.mean("kl", sum, tokens);
  }

  Estimate estimate = entry.estimate(input);
  // A completion that nothing scores teaches nothing.
  for (double& x : estimate.advantages) x = std::isnan(x) ? 0 : x;
  out.advantages =
      entry.by_token ? to_tensor(estimate.advantages, {input.B, input.T}) : to_tensor(estimate.advantages, {input.B});
  if (!estimate.returns.empty()) out.returns = to_tensor(estimate.returns, {input.B, input.T});
  out.rewards = to_tensor(input.rewards, {input.B});

  const int64_t G = options.num_generations, groups = input.B / G;
  out.spread = at::zeros({groups}, at::kBool);
  for (int64_t g = 0; g < groups; ++g)
    out.spread.mutable_data_ptr<bool>()[g] = moments(std::span(input.rewards).subspan(g * G, G)).std > 1e-8;
  report(input, estimate.zero_std, out);
  return out;
}

double soft_overlong_punishment(int64_t length, int64_t max_completion_len, int64_t soft_punish_cache) {
  if (soft_punish_cache < 0 || soft_punish_cache > max_completion_len) {
    throw std::invalid_argument(fmt::format("soft_punish_cache: {} is not between 0 and max_completion_len {}",
                                            soft_punish_cache, max_completion_len));
  }
  const int64_t free = max_completion_len - soft_punish_cache;
  if (length <= free) return 0;
  if (length > max_completion_len) return -1;
  return static_cast<double>(free - length) / static_cast<double>(soft_punish_cache);
}

}  // namespace cairn::rl
