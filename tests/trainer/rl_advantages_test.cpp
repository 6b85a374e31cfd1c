// labels: quick
// Advantages, the critic's loss and length punishment against numbers worked out by hand and against plain formulas.
#include "trainer/rl/advantages.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/models/kernel_checks.h"
#include "trainer/rl/ppo.h"

namespace cairn::rl {
namespace {

using kernels::testing::expect_close;
using kernels::testing::message_of;
using kernels::testing::random_floats;

at::Tensor bools(const std::vector<int64_t>& values) { return at::tensor(values).to(at::kBool); }

AdvantageBatch rewarded(const std::vector<float>& rewards, int64_t functions = 1) {
  AdvantageBatch batch;
  batch.rewards = at::tensor(rewards).view({-1, functions});
  return batch;
}
AdvantageOptions groups_of(int64_t n, const std::string& estimator = "grpo") {
  return {.advantage_estimator = estimator, .num_generations = n};
}
at::Tensor d(const at::Tensor& x) { return x.to(at::kDouble); }

TEST(Advantages, GrpoByGroupBatchAndNone) {
  const AdvantageBatch batch = rewarded({1, 0, 0, 1, 5, 5, 5, 5, 0, 0, 0, 3});
  const at::Tensor r = d(batch.rewards).view({3, 4}), centred = r - r.mean(1, true);
  AdvantageOptions options = groups_of(4);
  Advantages out = advantages(batch, {}, options);
  expect_close(out.advantages.view({3, 4}), centred / (r.std(1, true, true) + 1e-4), 1e-6, "group");
  EXPECT_NEAR(out.advantages[0].item<double>(), 0.5 / (std::sqrt(1.0 / 3) + 1e-4), 1e-6);
  EXPECT_EQ(out.advantages[5].item<double>(), 0) << "a group without spread teaches nothing";
  EXPECT_TRUE(at::equal(out.spread, bools({1, 0, 1})));
  EXPECT_NEAR(out.metrics.values().at("frac_reward_zero_std"), 1.0 / 3, 1e-12);
  EXPECT_NEAR(out.metrics.values().at("reward"), r.mean().item<double>(), 1e-12);
  EXPECT_NEAR(out.metrics.values().at("reward_std"), r.std().item<double>(), 1e-12);

  options.scale_rewards = "batch";
  out = advantages(batch, {}, options);
  expect_close(out.advantages.view({3, 4}), centred / (r.std() + 1e-4), 1e-6, "batch");
  EXPECT_EQ(out.metrics.values().at("frac_reward_zero_std"), 0);
  options.scale_rewards = "none";
  expect_close(advantages(batch, {}, options).advantages.view({3, 4}), centred, 1e-6, "none");
}

TEST(Advantages, FunctionsAreWeighted) {
  AdvantageBatch batch = rewarded({1, 10, 0, 20, 1, 30, 0, 40}, 2);
  batch.names = {"right", "length"};
  AdvantageOptions options = groups_of(4);
  options.reward_weights = {2, -0.1};
  options.scale_rewards = "none";
  const Advantages out = advantages(batch, {}, options);
  const at::Tensor sums = at::tensor({1.0, -2.0, -1.0, -4.0}, at::kDouble);
  expect_close(out.rewards, sums, 1e-6, "weighted");
  expect_close(out.advantages, sums + 1.5, 1e-6, "centred");
  EXPECT_NEAR(out.metrics.values().at("rewards/right/mean"), 0.5, 1e-12);
  EXPECT_NEAR(out.metrics.values().at("rewards/length/std"), std::sqrt(500.0 / 3), 1e-6);

  // Each function has its own scale: the length counts in units of its spread, not a hundredfold.
  options.multi_objective_aggregation = "normalize_then_sum", options.scale_rewards = "group";
  const at::Tensor r = d(batch.rewards), normal = (r - r.mean(0, true)) / (r.std(0, true, true) + 1e-4);
  const at::Tensor sum = 2 * normal.select(1, 0) - 0.1 * normal.select(1, 1);
  expect_close(advantages(batch, {}, options).advantages, (sum - sum.mean()) / (sum.std() + 1e-4), 1e-6, "GDPO");
}

TEST(Advantages, WhatNothingScoresIsLeftOut) {
  const float no = NAN;
  for (const char* estimator : {"grpo", "rloo"}) {
    AdvantageOptions options = groups_of(4, estimator);
    const Advantages with = advantages(rewarded({1, no, 0, 4, no, no, 3, no}), {}, options);
    const Advantages without = advantages(rewarded({1, 0, 4}), {}, groups_of(3, estimator));
    const at::Tensor kept = at::stack({with.advantages[0], with.advantages[2], with.advantages[3]});
    expect_close(kept, without.advantages, 1e-6, estimator);
    EXPECT_EQ(with.advantages[1].item<double>(), 0) << estimator;
    EXPECT_EQ(with.advantages.narrow(0, 4, 4).abs().sum().item<double>(), 0) << "one score is no group";
    EXPECT_TRUE(at::equal(with.spread, bools({1, 0})));
    EXPECT_TRUE(std::isnan(with.rewards[1].item<double>()));
  }
  // A completion that some functions score counts.
  const Advantages partly = advantages(rewarded({1, no, 2, 5, no, no, no, 3}, 2), {}, groups_of(4));
  EXPECT_EQ(partly.rewards[0].item<double>(), 1);
  EXPECT_NE(partly.advantages[0].item<double>(), 0);
  EXPECT_EQ(partly.advantages[2].item<double>(), 0);
}

TEST(Advantages, RlooLeavesOneOut) {
  AdvantageOptions options = groups_of(3, "rloo");
  const AdvantageBatch batch = rewarded({1, 4, 10, 2, 2, 2});
  expect_close(advantages(batch, {}, options).advantages, at::tensor({-6.0, -1.5, 7.5, 0.0, 0.0, 0.0}, at::kDouble),
               1e-6, "leave one out");
  options.normalize_advantages = true;
  const at::Tensor plain = at::tensor({-6.0, -1.5, 7.5, 0.0, 0.0, 0.0}, at::kDouble);
  expect_close(advantages(batch, {}, options).advantages, (plain - plain.mean()) / (plain.std() + 1e-4), 1e-6,
               "normal");
  options.normalize_advantages = false, options.reward_clip_max = 4;
  expect_close(advantages(batch, {}, options).advantages, at::tensor({-3.0, 1.5, 1.5, 0.0, 0.0, 0.0}, at::kDouble),
               1e-6, "clipped");
}

AdvantageBatch with_tokens(std::vector<float> rewards) {
  AdvantageBatch batch = rewarded(rewards);
  const int64_t B = rewards.size();
  batch.mask = at::zeros({B, 4}, at::kBool);
  for (int64_t b = 0; b < B; ++b) batch.mask[b].narrow(0, 0, 4 - b % 4).fill_(true);  // 4, 3, 2, 1 tokens
  batch.old_logprobs = random_floats({B, 4}, 1), batch.ref_logprobs = random_floats({B, 4}, 2);
  return batch;
}

TEST(Advantages, TheKlComesOffTheReward) {
  PolicyOptions policy{.beta = 0.5, .kl_estimator = "k1", .kl_in_reward = true};
  const AdvantageBatch batch = with_tokens({1, 0, 0, 2});
  const at::Tensor mask = d(batch.mask), kl = (d(batch.old_logprobs) - d(batch.ref_logprobs)) * mask;
  const at::Tensor rewards = d(batch.rewards).view({4}) - 0.5 * kl.sum(1);
  const Advantages out = advantages(batch, policy, groups_of(4, "rloo"));
  expect_close(out.advantages, (rewards - rewards.mean()) * 4 / 3, 1e-6, "rloo");
  EXPECT_NEAR(out.metrics.values().at("kl"), (kl.sum() / mask.sum()).item<double>(), 1e-6);
  expect_close(out.rewards, batch.rewards.view({4}), 1e-9, "rewards as they were given");

  // REINFORCE++: token by token, discounted, whitened.
  AdvantageOptions options = groups_of(1, "reinforce_plus_plus");
  options.gamma = 0.9;
  at::Tensor token = -0.5 * kl, to_go = at::zeros({4, 4}, at::kDouble);
  for (int64_t b = 0; b < 4; ++b) {
    token[b][3 - b] += d(batch.rewards)[b][0];
    for (int64_t t = 3 - b; t >= 0; --t)
      to_go[b][t] = token[b][t] + (t < 3 - b ? 0.9 * to_go[b][t + 1] : at::zeros({}, at::kDouble));
  }
  const at::Tensor known = to_go.masked_select(batch.mask);
  expect_close(advantages(batch, policy, options).advantages,
               (to_go - known.mean()) / (known.var() + 1e-8).sqrt() * mask, 1e-6, "reinforce_plus_plus");
}

TEST(Advantages, ReinforceBaselineAndRemax) {
  const AdvantageBatch batch = with_tokens({1, 0, 0, 2});
  const at::Tensor mask = d(batch.mask), r = d(batch.rewards).view({4, 1});
  const at::Tensor centred = (r - r.mean()).expand({4, 4}), known = centred.masked_select(batch.mask);
  expect_close(advantages(batch, {}, groups_of(4, "reinforce_plus_plus_baseline")).advantages,
               (centred - known.mean()) / (known.var() + 1e-8).sqrt() * mask, 1e-6, "baseline");

  AdvantageBatch greedy = batch;
  greedy.greedy_rewards = at::tensor({0.5f, 0.5f, 1.0f, 1.0f});
  expect_close(advantages(greedy, {}, groups_of(1, "remax")).advantages,
               (r - d(greedy.greedy_rewards).view({4, 1})) * mask, 1e-6, "remax");
  EXPECT_NE(message_of([&] { advantages(batch, {}, groups_of(1, "remax")); }).find("greedy_rewards"),
            std::string::npos);
}

TEST(Advantages, TokensOfToolsArePassedOver) {
  // The same completion with and without foreign tokens inside.
  const auto alone = bools({1, 1, 1}).view({1, 3});
  const auto mixed = bools({1, 0, 1, 0, 1, 0}).view({1, 6});
  const auto spread_out = [](const at::Tensor& x, double filler) {
    at::Tensor y = at::full({1, 6}, filler, at::kFloat);
    for (int64_t t = 0; t < 3; ++t) y[0][2 * t] = x[0][t];
    return y;
  };
  const at::Tensor rewards = at::tensor({0.1f, -0.2f, 1.0f}).view({1, 3}),
                   values = at::tensor({0.3f, 0.4f, 0.6f}).view({1, 3});
  const Gae plain = gae(rewards, values, alone, 0.9, 0.8);
  const Gae holes = gae(spread_out(rewards, NAN), spread_out(values, NAN), mixed, 0.9, 0.8);
  expect_close(holes.advantages, spread_out(plain.advantages, 0), 1e-7, "advantages");
  expect_close(holes.returns, spread_out(plain.returns, 0), 1e-7, "returns");
}

TEST(Gae, ClosedForms) {
  const at::Tensor rewards = at::tensor({0.0f, 0.0f, 1.0f, 9.0f}).view({1, 4});
  const at::Tensor values = at::tensor({0.2f, 0.4f, 0.5f, 9.0f}).view({1, 4});
  const at::Tensor mask = bools({1, 1, 1, 0}).view({1, 4});
  // lambda 1: the return is the discounted sum of rewards, whatever the critic says.
  const Gae monte_carlo = gae(rewards, values, mask, 0.5, 1);
  expect_close(monte_carlo.returns, at::tensor({0.25, 0.5, 1.0, 0.0}, at::kDouble).view({1, 4}), 1e-6, "lambda 1");
  expect_close(monte_carlo.advantages, at::tensor({0.05, 0.1, 0.5, 0.0}, at::kDouble).view({1, 4}), 1e-6, "lambda 1");
  // lambda 0: one step of temporal difference.
  expect_close(gae(rewards, values, mask, 0.5, 0).advantages,
               at::tensor({0.0, -0.15, 0.5, 0.0}, at::kDouble).view({1, 4}), 1e-6, "lambda 0");
  const Gae half = gae(rewards, values, mask, 1, 0.5);
  expect_close(half.advantages, at::tensor({0.2 + 0.5 * (0.1 + 0.25), 0.1 + 0.25, 0.5, 0.0}, at::kDouble).view({1, 4}),
               1e-6, "lambda 1/2");
}

TEST(Gae, AsAnEstimator) {
  AdvantageBatch batch = with_tokens({1, 0, 0, 2});
  batch.values = random_floats({4, 4}, 7);
  AdvantageOptions options = groups_of(1, "gae");
  options.gamma = 0.95, options.lam = 0.9;
  PolicyOptions policy{.beta = 0.2, .kl_in_reward = true};
  const Advantages out = advantages(batch, policy, options);
  const at::Tensor mask = d(batch.mask), x = d(batch.ref_logprobs) - d(batch.old_logprobs);
  at::Tensor token = -0.2 * (x.exp() - 1 - x) * mask;
  for (int64_t b = 0; b < 4; ++b) token[b][3 - b] += d(batch.rewards)[b][0];
  const Gae raw = gae(token.to(at::kFloat), batch.values, batch.mask, 0.95, 0.9);
  expect_close(out.returns, raw.returns, 1e-6, "returns");
  const at::Tensor known = d(raw.advantages).masked_select(batch.mask);
  expect_close(out.advantages, (d(raw.advantages) - known.mean()) / (known.var() + 1e-8).sqrt() * mask, 1e-5,
               "whitened");
}

TEST(ValueLoss, EqualsThePlainFormula) {
  const at::Tensor values = random_floats({4, 12}, 1), old_values = values + random_floats({4, 12}, 2, 0.3);
  const at::Tensor returns = random_floats({4, 12}, 3);
  at::Tensor mask = at::ones({4, 12}, at::kBool);
  mask[1].fill_(false), mask[2][3].fill_(false);
  const ValueOptions options{.cliprange_value = 0.2, .vf_coef = 0.7};
  const ValueOutput out = value_loss(values, old_values, returns, mask, 20, options);
  at::AutoGradMode on(true);
  const at::Tensor v = d(values).requires_grad_(), R = d(returns), o = d(old_values);
  const at::Tensor moved = v.clamp(o - 0.2, o + 0.2);
  const at::Tensor loss = 0.7 * 0.5 * (at::max((v - R).pow(2), (moved - R).pow(2)) * d(mask)).sum() / 20;
  EXPECT_NEAR(out.loss, loss.item<double>(), 1e-9);
  expect_close(out.dvalues, torch::autograd::grad({loss}, {v})[0], 1e-7, "dvalues");
  EXPECT_GT(out.metrics.values().at("val/clipfrac"), 0);
  EXPECT_LT(out.metrics.values().at("val/clipfrac"), 1);
  EXPECT_EQ(value_loss(values, old_values, returns, at::zeros_like(mask), 0, options).loss, 0);
}

TEST(Advantages, SoftOverlongPunishment) {
  const std::pair<int64_t, double> expected[] = {{0, 0}, {80, 0}, {81, -0.05}, {90, -0.5}, {100, -1}, {101, -1}};
  for (const auto& [length, punishment] : expected)
    EXPECT_DOUBLE_EQ(soft_overlong_punishment(length, 100, 20), punishment) << length;
  EXPECT_EQ(soft_overlong_punishment(100, 100, 0), 0);
  EXPECT_EQ(soft_overlong_punishment(101, 100, 0), -1);
  EXPECT_NE(message_of([] { soft_overlong_punishment(1, 10, 11); }), "");
}

TEST(Advantages, TensorsThatDoNotFit) {
  EXPECT_NE(message_of([] { advantages(rewarded({1, 2, 3}), {}, groups_of(2)); }).find("groups"), std::string::npos);
  AdvantageOptions weights = groups_of(2);
  weights.reward_weights = {1, 2};
  EXPECT_EQ(message_of([&] { advantages(rewarded({1, 2}), {}, weights); }).find("reward_weights"), 0);
  EXPECT_NE(message_of([] { advantages(rewarded({1, 2}), {}, groups_of(1, "gae")); }).find("mask"), std::string::npos);
  AdvantageBatch no_values = with_tokens({1, 2});
  EXPECT_NE(message_of([&] { advantages(no_values, {}, groups_of(1, "gae")); }).find("values"), std::string::npos);
  AdvantageBatch no_reference = with_tokens({1, 2});
  no_reference.ref_logprobs = at::Tensor();
  const PolicyOptions policy{.beta = 0.1, .kl_in_reward = true};
  EXPECT_NE(message_of([&] { advantages(no_reference, policy, groups_of(2)); }).find("ref_logprobs"),
            std::string::npos);
}

}  // namespace
}  // namespace cairn::rl
