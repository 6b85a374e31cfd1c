// labels: quick
// Policy losses against autograd through the plain formulas in float64, and what each is said to divide by.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/models/kernel_checks.h"
#include "trainer/rl/kl.h"
#include "trainer/rl/losses/loss.h"
#include "trainer/rl/policy_loss.h"

namespace cairn::rl {
namespace {

using kernels::testing::expect_close;
using kernels::testing::message_of;
using kernels::testing::random_floats;

at::Tensor bools(const std::vector<int64_t>& values) { return at::tensor(values).to(at::kBool); }

// Completions of 7, 0, 3, 1, 5 and 7 tokens; the fourth is truncated, the last has tokens of a tool inside.
PolicyBatch make_batch(bool by_token = false, bool rollout = false) {
  const int64_t B = 6, T = 7;
  PolicyBatch batch;
  batch.logprobs = random_floats({B, T}, 1, 0.4) - 1.5;
  batch.old_logprobs = batch.logprobs + random_floats({B, T}, 2, 0.25);
  batch.ref_logprobs = batch.logprobs + random_floats({B, T}, 3, 0.4);
  if (rollout) batch.rollout_logprobs = batch.old_logprobs + random_floats({B, T}, 4, 0.5);
  batch.entropies = random_floats({B, T}, 5).abs();
  batch.mask = at::zeros({B, T}, at::kBool);
  const int64_t lengths[] = {7, 0, 3, 1, 5, 7};
  for (int64_t b = 0; b < B; ++b) batch.mask[b].narrow(0, 0, lengths[b]).fill_(true);
  batch.mask[5].narrow(0, 2, 2).fill_(false);
  batch.advantages = by_token ? random_floats({B, T}, 6) : at::tensor({1.2f, -0.3f, -0.8f, 0.5f, -1.1f, 0.7f});
  batch.truncated = bools({0, 0, 0, 1, 0, 0});
  return batch;
}

at::Tensor wide(const at::Tensor& x) { return x.to(at::kDouble); }
at::Tensor choose(const at::Tensor& condition, double yes, double no) {  // at::where of two numbers is float32
  return at::where(condition, at::full({}, yes, at::kDouble), at::full({}, no, at::kDouble));
}

// The plain formulas, written with operators that autograd knows. logp, entropies: float64, differentiated.
at::Tensor plain(const at::Tensor& logp, const at::Tensor& entropies, const PolicyBatch& batch,
                 const PolicyCounts& step, const PolicyOptions& o) {
  at::Tensor keep = batch.mask;
  if (o.mask_truncated_completions) keep = keep & ~batch.truncated.unsqueeze(1);
  const at::Tensor m = wide(keep), n = m.sum(1, true).clamp_min(1.0);
  const at::Tensor A = wide(batch.advantages.dim() == 1 ? batch.advantages.unsqueeze(1) : batch.advantages);
  const at::Tensor old = batch.old_logprobs.defined() ? wide(batch.old_logprobs) : logp.detach();
  const at::Tensor d = logp - old;
  at::Tensor log_w = d;
  if (o.importance_sampling_level == "sequence") log_w = (d * m).sum(1, true) / n;
  if (o.loss_type == "rloo") log_w = (d * m).sum(1, true);
  const at::Tensor w = log_w.exp();
  const double high = o.epsilon_high.value_or(o.epsilon);

  at::Tensor weights = at::ones_like(m);
  const bool corrects = batch.rollout_logprobs.defined() && o.vllm_importance_sampling_correction;
  if (corrects) {
    at::Tensor x = (old - wide(batch.rollout_logprobs)) * m;
    if (o.vllm_importance_sampling_mode.starts_with("sequence")) x = x.sum(1, true).expand_as(m);
    x = x.exp();
    const double cap = *o.vllm_importance_sampling_clip_max, floor = o.vllm_importance_sampling_clip_min.value_or(0);
    weights = o.vllm_importance_sampling_mode.ends_with("mask") ? at::where((x > cap) | (x < floor), 0.0, x)
                                                                : x.clamp(floor, cap);
  }

  at::Tensor loss;
  if (o.loss_type == "cispo") {
    loss = -w.clamp_max(high).detach() * A * logp;
  } else if (o.loss_type == "sapo") {
    const at::Tensor tau = choose(A > 0, o.sapo_temperature_pos, o.sapo_temperature_neg);
    loss = -at::sigmoid(tau * (w - 1)) * 4 / tau * A;
  } else if (o.loss_type == "vespo") {
    at::Tensor log_phi = (d.detach() * m).sum(1, true);
    if (corrects) log_phi = log_phi + (weights.log().clamp_min(std::log(1e-8)) * m).sum(1, true);
    log_phi = log_phi.clamp(std::log(1e-8), 20);
    const at::Tensor k = choose(A >= 0, o.vespo_k_pos, o.vespo_k_neg);
    const at::Tensor lambda = choose(A >= 0, o.vespo_lambda_pos, o.vespo_lambda_neg);
    loss = -(lambda + k * log_phi - lambda * log_phi.exp()).exp() * A * logp;
  } else {
    const at::Tensor free = o.delta ? w.clamp_max(*o.delta) : w;
    loss = -at::min(free * A, w.clamp(1 - o.epsilon, 1 + high) * A);
  }
  if (o.off_policy_mask_threshold) {
    const at::Tensor sampler = batch.rollout_logprobs.defined() ? wide(batch.rollout_logprobs) : old;
    const at::Tensor drift = ((sampler - logp.detach()) * m).sum(1, true) / n;
    loss = loss * wide((A >= 0) | (drift <= *o.off_policy_mask_threshold));
  }
  at::Tensor learnt = m;
  if (o.top_entropy_quantile < 1) learnt = m * wide(batch.entropies >= step.entropy_threshold);
  loss = loss * choose(learnt > 0, 1, 0);
  if (o.loss_type != "vespo") loss = loss * weights;
  if (o.beta != 0 && !o.kl_in_reward) {
    const at::Tensor x = wide(batch.ref_logprobs) - logp;
    at::Tensor kl = o.kl_estimator == "k1" ? -x : o.kl_estimator == "k2" ? 0.5 * x * x : x.exp() - 1 - x;
    if (o.use_bias_correction_kl) kl = kl * w;
    loss = loss + o.beta * kl;
  }
  loss = loss * m;
  const double completions = static_cast<double>(step.completions);
  at::Tensor total;
  if (o.loss_type == "grpo" || o.loss_type == "sapo" || o.loss_type == "rloo") {
    total = (loss.sum(1, true) / n).sum() / completions;
  } else if (o.loss_type == "bnpo") {
    total = loss.sum() / m.sum().clamp_min(1.0) / static_cast<double>(step.micro_batches);
  } else if (o.loss_type == "dr_grpo") {
    total = loss.sum() / (completions * static_cast<double>(o.max_completion_length));
  } else if (o.loss_type == "luspo") {
    total = loss.sum() / completions;
  } else {
    total = loss.sum() / static_cast<double>(step.tokens);
  }
  if (o.entropy_coef != 0)
    total = total - o.entropy_coef * (entropies * learnt).sum() / static_cast<double>(step.entropy_tokens);
  return total;
}

PolicyCounts counts_of(const PolicyBatch& batch, const PolicyOptions& o) {
  double threshold = 0;
  if (o.top_entropy_quantile < 1) {
    threshold =
        entropy_threshold(counted_entropies(batch.mask, batch.truncated, o, batch.entropies), o.top_entropy_quantile);
  }
  return count(batch.mask, batch.truncated, o, batch.entropies, threshold);
}

void expect_plain(const PolicyBatch& batch, const PolicyOptions& options, const std::string& what) {
  const PolicyCounts step = counts_of(batch, options);
  const PolicyOutput out = policy_loss(batch, step, options);
  at::AutoGradMode on(true);
  const at::Tensor logp = wide(batch.logprobs).requires_grad_(), entropies = wide(batch.entropies).requires_grad_();
  const at::Tensor expected = plain(logp, entropies, batch, step, options);
  const bool bonus = options.entropy_coef != 0;
  const auto gradients =
      bonus ? torch::autograd::grad({expected}, {logp, entropies}) : torch::autograd::grad({expected}, {logp});
  EXPECT_NEAR(out.loss, expected.item<double>(), 1e-9) << what;
  // Gradients are float32: 1e-6 of the largest.
  const double size = gradients[0].abs().max().item<double>() + 1e-30;
  expect_close(out.dlogprobs / size, gradients[0] / size, 1e-6, what + ", dlogprobs");
  EXPECT_EQ(out.dentropies.defined(), bonus) << what;
  if (bonus) expect_close(out.dentropies, gradients[1], 1e-8, what + ", dentropies");
}

const char* const kLossTypes[] = {"grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo", "rloo"};

PolicyOptions options_for(const std::string& loss_type) {
  PolicyOptions options{.loss_type = loss_type};
  options.vllm_importance_sampling_mode = "token_truncate";
  options.max_completion_length = 9;
  if (loss_type == "cispo") options.epsilon_high = 1.1;
  return options;
}

TEST(PolicyLoss, EqualsThePlainFormula) {
  using Change = std::function<void(PolicyOptions&)>;
  const std::vector<std::pair<std::string, Change>> changes = {
      {"plain", [](auto&) {}},
      {"epsilon_high", [](auto& o) { o.epsilon_high = o.loss_type == "cispo" ? 0.9 : 0.1; }},
      {"k3, corrected", [](auto& o) { o.beta = 0.3; }},
      {"k3", [](auto& o) { o.beta = 0.3, o.use_bias_correction_kl = false; }},
      {"k2", [](auto& o) { o.beta = 0.3, o.kl_estimator = "k2", o.use_bias_correction_kl = false; }},
      {"k1, corrected", [](auto& o) { o.beta = 0.3, o.kl_estimator = "k1"; }},
      {"KL in the reward", [](auto& o) { o.beta = 0.3, o.kl_in_reward = true; }},
      {"truncated are masked", [](auto& o) { o.mask_truncated_completions = true; }},
      {"high entropy", [](auto& o) { o.top_entropy_quantile = 0.4, o.beta = 0.1; }},
      {"entropy bonus", [](auto& o) { o.entropy_coef = 0.02, o.top_entropy_quantile = 0.5; }},
      {"off-policy mask", [](auto& o) { o.off_policy_mask_threshold = 0.02; }},
      {"token mask", [](auto& o) { o.vllm_importance_sampling_mode = "token_mask"; }},
      {"clip_min",
       [](auto& o) { o.vllm_importance_sampling_clip_min = 0.8, o.vllm_importance_sampling_clip_max = 1.2; }},
      {"uncorrected", [](auto& o) { o.vllm_importance_sampling_correction = false; }},
      {"sequence mask", [](auto& o) { o.vllm_importance_sampling_mode = "sequence_mask"; }},
      {"sequence truncate",
       [](auto& o) {
         o.vllm_importance_sampling_mode = "sequence_truncate", o.vllm_importance_sampling_clip_max = 1.1;
       }},
  };
  int cases = 0;
  for (const std::string loss_type : kLossTypes) {
    for (const auto& [name, change] : changes) {
      for (const bool sequence : {false, true}) {
        for (const bool by_token : {false, true}) {
          for (const bool rollout : {false, true}) {
            PolicyOptions options = options_for(loss_type);
            if (sequence) options.importance_sampling_level = "sequence";
            change(options);
            const bool refused = (sequence && loss_type == "rloo") ||
                                 (loss_type == "vespo" && options.vllm_importance_sampling_mode.starts_with("seq"));
            if (refused) continue;
            const std::string what = loss_type + ", " + name + (sequence ? ", sequence" : "") +
                                     (by_token ? ", A [B, T]" : "") + (rollout ? ", rollout" : "");
            expect_plain(make_batch(by_token, rollout), options, what);
            ++cases;
          }
        }
      }
    }
  }
  EXPECT_GT(cases, 900);
}

TEST(PolicyLoss, OnPolicyAndDelta) {
  for (const std::string loss_type : kLossTypes) {
    PolicyBatch batch = make_batch();
    batch.old_logprobs = at::Tensor();
    PolicyOptions options = options_for(loss_type);
    if (loss_type == "cispo") options.epsilon_high = 5;
    options.beta = 0.2;
    expect_plain(batch, options, loss_type + " on policy");
  }
  for (const char* loss_type : {"grpo", "dapo", "dr_grpo", "bnpo", "luspo", "rloo"}) {
    PolicyOptions options = options_for(loss_type);
    options.delta = 1.25;
    expect_plain(make_batch(), options, std::string(loss_type) + " delta");
    options.delta = 1.05;  // below 1 + epsilon: caps inside the region
    expect_plain(make_batch(), options, std::string(loss_type) + " small delta");
  }
}

// One token, ratio r, advantage A: the value and the derivative by log r.
std::pair<double, double> one_token(double r, double A, PolicyOptions options) {
  PolicyBatch batch;
  batch.logprobs = at::full({1, 1}, -1.0, at::kFloat);
  batch.old_logprobs = batch.logprobs - std::log(r);
  batch.mask = at::ones({1, 1}, at::kBool);
  batch.advantages = at::full({1}, A, at::kFloat);
  const PolicyOutput out = policy_loss(batch, count(batch.mask, {}, options), options);
  return {out.loss, out.dlogprobs.item<double>()};
}

TEST(PolicyLoss, ClosedForms) {
  const PolicyOptions dapo{.epsilon = 0.2, .epsilon_high = 0.28};
  const auto expect = [](std::pair<double, double> got, double loss, double gradient) {
    EXPECT_NEAR(got.first, loss, 1e-6);
    EXPECT_NEAR(got.second, gradient, 1e-6);
  };
  expect(one_token(1.0, 2, dapo), -2, -2);
  expect(one_token(1.25, 2, dapo), -2.5, -2.5);  // inside 1 + epsilon_high
  expect(one_token(1.5, 2, dapo), -2.56, 0);     // clipped: no gradient
  expect(one_token(0.5, 2, dapo), -1, -1);       // a good token that fell is not clipped
  expect(one_token(0.5, -2, dapo), 1.6, 0);
  expect(one_token(3.0, -2, dapo), 6, 6);  // a bad token that rose is not clipped ...
  PolicyOptions capped = dapo;
  capped.delta = 2;
  expect(one_token(3.0, -2, capped), 4, 0);  // ... but by delta
  // The cap of cispo is epsilon_high itself; beyond it the gradient stays.
  const PolicyOptions cispo{.loss_type = "cispo", .epsilon_high = 2};
  expect(one_token(1.5, 1, cispo), 1.5, -1.5);
  expect(one_token(7.0, 1, cispo), 2, -2);
  const PolicyOptions sapo{.loss_type = "sapo"};
  expect(one_token(1.0, 1, sapo), -2, -1);
  const PolicyOptions vespo{.loss_type = "vespo", .vllm_importance_sampling_mode = "token_mask"};
  expect(one_token(1.0, -1, vespo), -1, 1);  // phi(1) = 1
  expect(one_token(2.0, 1, vespo), std::exp(3 + 2 * std::log(2.0) - 6), -std::exp(3 + 2 * std::log(2.0) - 6));
}

TEST(PolicyLoss, MicroBatchesAddUpToTheStep) {
  for (const std::string loss_type : kLossTypes) {
    PolicyOptions options = options_for(loss_type);
    options.beta = 0.1, options.entropy_coef = 0.01, options.top_entropy_quantile = 0.5;
    options.mask_truncated_completions = true;
    const PolicyBatch batch = make_batch(false, true);
    PolicyCounts step = counts_of(batch, options);
    const double threshold = step.entropy_threshold;
    const PolicyOutput whole = policy_loss(batch, step, options);
    const auto part = [&](int64_t first, int64_t rows) {
      PolicyBatch p;
      for (const auto member : {&PolicyBatch::logprobs, &PolicyBatch::old_logprobs, &PolicyBatch::ref_logprobs,
                                &PolicyBatch::rollout_logprobs, &PolicyBatch::entropies, &PolicyBatch::mask,
                                &PolicyBatch::advantages, &PolicyBatch::truncated})
        p.*member = (batch.*member).narrow(0, first, rows);
      return p;
    };
    PolicyCounts sum;
    const std::vector<std::pair<int64_t, int64_t>> pieces = {{0, 2}, {2, 1}, {3, 3}};
    for (const auto& [first, rows] : pieces) {
      const PolicyBatch p = part(first, rows);
      sum += count(p.mask, p.truncated, options, p.entropies, threshold);
    }
    EXPECT_EQ(sum.tokens, step.tokens);
    EXPECT_EQ(sum.completions, 6);
    EXPECT_EQ(sum.micro_batches, 3);
    EXPECT_EQ(sum.entropy_tokens, step.entropy_tokens);
    double loss = 0;
    std::vector<at::Tensor> gradients;
    Tally metrics;
    for (const auto& [first, rows] : pieces) {
      const PolicyOutput out = policy_loss(part(first, rows), sum, options);
      loss += out.loss, gradients.push_back(out.dlogprobs), metrics.add(out.metrics);
    }
    if (loss_type == "bnpo") {
      EXPECT_GT(std::abs(loss - whole.loss), 1e-3) << "bnpo depends on micro_batch";
    } else {
      EXPECT_NEAR(loss, whole.loss, 1e-12) << loss_type;
      EXPECT_TRUE(kernels::testing::same_bits(at::cat(gradients), whole.dlogprobs)) << loss_type;
    }
    for (const auto& [name, value] : whole.metrics.values()) {
      if (loss_type == "bnpo" && name == "policy_loss") continue;
      EXPECT_NEAR(metrics.values().at(name), value, 1e-12) << loss_type << " " << name;
    }
  }
}

TEST(PolicyLoss, NothingOutsideTheMaskIsRead) {
  for (const std::string loss_type : kLossTypes) {
    PolicyOptions options = options_for(loss_type);
    options.beta = 0.1, options.entropy_coef = 0.01, options.off_policy_mask_threshold = 0.1;
    const PolicyBatch batch = make_batch(true, true);
    PolicyBatch marred = batch;
    for (const auto member : {&PolicyBatch::logprobs, &PolicyBatch::old_logprobs, &PolicyBatch::ref_logprobs,
                              &PolicyBatch::rollout_logprobs, &PolicyBatch::entropies, &PolicyBatch::advantages})
      marred.*member = (batch.*member).masked_fill(~batch.mask, NAN);
    const PolicyCounts step = counts_of(batch, options);
    const PolicyOutput a = policy_loss(batch, step, options), b = policy_loss(marred, step, options);
    EXPECT_EQ(a.loss, b.loss) << loss_type;
    EXPECT_TRUE(kernels::testing::same_bits(a.dlogprobs, b.dlogprobs)) << loss_type;
    EXPECT_EQ(a.metrics.values(), b.metrics.values()) << loss_type;
    EXPECT_EQ(a.dlogprobs.masked_select(~batch.mask).abs().sum().item<double>(), 0);
  }
}

TEST(PolicyLoss, NoTokensGiveZero) {
  for (const std::string loss_type : kLossTypes) {
    PolicyOptions options = options_for(loss_type);
    options.beta = 0.1, options.entropy_coef = 0.01;
    PolicyBatch batch = make_batch(false, true);
    batch.mask = at::zeros_like(batch.mask);
    const PolicyOutput out = policy_loss(batch, counts_of(batch, options), options);
    EXPECT_EQ(out.loss, 0) << loss_type;
    EXPECT_EQ(out.dlogprobs.abs().sum().item<double>(), 0) << loss_type;
    EXPECT_EQ(out.dentropies.abs().sum().item<double>(), 0) << loss_type;
    for (const auto& [name, value] : out.metrics.values()) EXPECT_FALSE(std::isnan(value)) << loss_type << " " << name;
    // Positions of length 0.
    PolicyBatch none;
    none.logprobs = none.old_logprobs = none.ref_logprobs = none.entropies = at::zeros({2, 0});
    none.mask = at::zeros({2, 0}, at::kBool), none.advantages = at::ones({2});
    EXPECT_EQ(policy_loss(none, count(none.mask, {}, options), options).loss, 0) << loss_type;
  }
}

// A rollout log-probability that the sampler could not give counts as equal to the proximal one.
TEST(PolicyLoss, UnknownRolloutLogprobs) {
  PolicyOptions options = options_for("dapo");
  options.off_policy_mask_threshold = 0.1;
  PolicyBatch batch = make_batch(false, true);
  batch.rollout_logprobs[0][1] = NAN;
  const PolicyOutput out = policy_loss(batch, counts_of(batch, options), options);
  batch.rollout_logprobs[0][1] = batch.old_logprobs[0][1];
  const PolicyOutput known = policy_loss(batch, counts_of(batch, options), options);
  EXPECT_EQ(out.loss, known.loss);
  EXPECT_TRUE(kernels::testing::same_bits(out.dlogprobs, known.dlogprobs));
}

// What Dr. GRPO removes. Two groups with the same rewards, right 1 and wrong 0: of the right answers one is short, one
// long, and so of the wrong ones.
TEST(PolicyLoss, TheLengthBiasThatDrGrpoRemoves) {
  const int64_t lengths[] = {2, 8, 2, 8};  // short right, long right, short wrong, long wrong
  PolicyBatch batch;
  batch.logprobs = at::full({4, 8}, -1.0, at::kFloat);
  batch.mask = at::zeros({4, 8}, at::kBool);
  for (int64_t b = 0; b < 4; ++b) batch.mask[b].narrow(0, 0, lengths[b]).fill_(true);
  batch.advantages = at::tensor({1.0f, 1.0f, -1.0f, -1.0f});
  const auto push = [&](const std::string& loss_type) {  // how much a token's log-probability is raised
    PolicyOptions options{.loss_type = loss_type};
    options.max_completion_length = 8;
    const at::Tensor d = -policy_loss(batch, count(batch.mask, {}, options), options).dlogprobs;
    return std::vector<double>{d[0][0].item<double>(), d[1][0].item<double>(), d[2][0].item<double>(),
                               d[3][0].item<double>()};
  };
  const std::vector<double> grpo = push("grpo"), fair = push("dr_grpo");
  EXPECT_NEAR(grpo[0], 4 * grpo[1], 1e-7) << "a right answer a quarter as long is pushed four times as much";
  EXPECT_NEAR(grpo[2], 4 * grpo[3], 1e-7) << "a wrong answer is spared the longer it is";
  EXPECT_GT(grpo[0], 0);
  EXPECT_LT(grpo[2], 0);
  EXPECT_EQ(fair[0], fair[1]);
  EXPECT_EQ(fair[2], fair[3]);
  EXPECT_EQ(fair[0], -fair[2]);
  EXPECT_NEAR(fair[0], 1.0 / (4 * 8), 1e-8);
}

TEST(PolicyLoss, SequenceRatiosAreTheirMean) {
  PolicyBatch batch = make_batch();
  PolicyOptions options = options_for("grpo");
  options.importance_sampling_level = "sequence", options.epsilon = options.epsilon_high.emplace(0.9);
  const PolicyOutput out = policy_loss(batch, counts_of(batch, options), options);
  const double log_ratio = (batch.logprobs[0] - batch.old_logprobs[0]).mean().item<double>();
  for (int64_t t = 0; t < 7; ++t)
    EXPECT_NEAR(out.dlogprobs[0][t].item<double>(), -1.2 * std::exp(log_ratio) / (7 * 6), 1e-7);
}

TEST(PolicyLoss, EntropyQuantileAndControl) {
  EXPECT_EQ(entropy_threshold({4, 1, 3, 2, 5}, 0.5), 3);
  EXPECT_EQ(entropy_threshold({1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, 0.2), 9);
  EXPECT_EQ(entropy_threshold({4, 1, 3, 2}, 0.5), 2.5);
  EXPECT_EQ(entropy_threshold({4, 1, 3, 2}, 0), 4);
  EXPECT_EQ(entropy_threshold({4, 1, 3, 2}, 1), 1);
  EXPECT_EQ(entropy_threshold({}, 0.5), HUGE_VAL);

  PolicyOptions options;
  options.use_adaptive_entropy = true, options.entropy_coef_max = 0.007;
  EntropyControl control{.coef = 0};
  EXPECT_EQ(control.applied(options), 0);
  control.observe(0.1, options);
  EXPECT_EQ(control.applied(options), 0.005);
  control.observe(0.1, options);
  EXPECT_EQ(control.applied(options), 0.007);
  control.observe(0.5, options);
  EXPECT_EQ(control.applied(options), 0);  // above the target
  EXPECT_NEAR(control.coef, 0.002, 1e-15);
  control.observe(0.5, options);
  EXPECT_EQ(control.coef, 0);
  const EntropyControl fixed{.coef = 0.3};
  EXPECT_EQ(fixed.applied({}), 0.3);
}

// Over all outcomes of small categorical distributions: bias and variance of the estimators, and the mean of their
// gradients by the policy's logits, are what kl.h says.
TEST(KlEstimators, BiasVarianceAndGradients) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    const int64_t V = 6;
    const at::Tensor logits = wide(random_floats({V}, seed)), log_p = logits.log_softmax(0);
    const at::Tensor log_q = (logits + wide(random_floats({V}, seed + 100, 0.3))).log_softmax(0);
    const at::Tensor p = log_p.exp(), q = log_q.exp();
    const double exact = (p * (log_p - log_q)).sum().item<double>();
    const at::Tensor kl_gradient = p * (log_p - log_q - exact);  // of KL(p || q) by the logits of p
    const at::Tensor other_gradient = p - q;                     // of KL(q || p)
    struct Seen {
      double mean = 0, variance = 0;
      at::Tensor gradient, weighted_gradient;  // of the estimate; of the estimate times the ratio
    };
    const auto see = [&](const char* name) {
      const KlEstimator estimator = find_kl_estimator(name);
      Seen seen{.gradient = at::zeros({V}, at::kDouble), .weighted_gradient = at::zeros({V}, at::kDouble)};
      for (int64_t v = 0; v < V; ++v) {
        const Kl kl = estimator(log_p[v].item<double>(), log_q[v].item<double>());
        const double pv = p[v].item<double>();
        at::Tensor dlogp = -p.clone();  // of log p(v) by the logits
        dlogp[v] += 1;
        seen.mean += pv * kl.value, seen.variance += pv * (kl.value - exact) * (kl.value - exact);
        seen.gradient += pv * kl.dlogp * dlogp;
        seen.weighted_gradient += pv * (kl.value + kl.dlogp) * dlogp;
      }
      return seen;
    };
    const Seen k1 = see("k1"), k2 = see("k2"), k3 = see("k3");
    EXPECT_NEAR(k1.mean, exact, 1e-12);
    EXPECT_NEAR(k3.mean, exact, 1e-12);
    EXPECT_GT(std::abs(k2.mean - exact), 1e-5) << "k2 is biased";
    EXPECT_LT(std::abs(k2.mean - exact), 0.5 * exact) << "but little";
    EXPECT_LT(k2.variance, 0.5 * k1.variance);
    EXPECT_LT(k3.variance, 0.5 * k1.variance);
    EXPECT_LT(k1.gradient.abs().max().item<double>(), 1e-12) << "k1 as a loss teaches nothing";
    expect_close(k2.gradient, kl_gradient, 1e-12, "k2");
    expect_close(k3.gradient, other_gradient, 1e-12, "k3");
    EXPECT_GT((other_gradient - kl_gradient).abs().max().item<double>(), 1e-4);
    expect_close(k1.weighted_gradient, kl_gradient, 1e-12, "k1 times the ratio");
    expect_close(k3.weighted_gradient, kl_gradient, 1e-12, "k3 times the ratio");
  }
}

TEST(PolicyLoss, TensorsThatDoNotFit) {
  const PolicyOptions options;
  const PolicyBatch good = make_batch(false, true);
  const PolicyCounts step = counts_of(good, options);
  const auto refusal = [&](const std::function<void(PolicyBatch&)>& spoil, PolicyOptions o) {
    PolicyBatch batch = good;
    spoil(batch);
    return message_of([&] { policy_loss(batch, step, o); });
  };
  EXPECT_NE(refusal([](auto& b) { b.advantages = at::ones({5}); }, options).find("advantages"), std::string::npos);
  EXPECT_NE(refusal([](auto& b) { b.mask = at::ones({6, 7}); }, options).find("mask"), std::string::npos);
  EXPECT_NE(refusal([](auto& b) { b.old_logprobs = at::Tensor(); }, options).find("old_logprobs"), std::string::npos);
  PolicyOptions kl = options;
  kl.beta = 0.1;
  EXPECT_NE(refusal([](auto& b) { b.ref_logprobs = at::Tensor(); }, kl).find("ref_logprobs"), std::string::npos);
  PolicyOptions bonus = options;
  bonus.entropy_coef = 0.1;
  EXPECT_NE(refusal([](auto& b) { b.entropies = at::Tensor(); }, bonus).find("entropies"), std::string::npos);
  PolicyOptions truncated = options;
  truncated.mask_truncated_completions = true;
  EXPECT_NE(refusal([](auto& b) { b.truncated = at::Tensor(); }, truncated).find("truncated"), std::string::npos);
  EXPECT_NE(message_of([&] { policy_loss(good, {}, options); }).find("completions"), std::string::npos);
}

TEST(PolicyOptions, CombinationsThatAreRefused) {
  const auto refusal = [](const std::function<void(PolicyOptions&, AdvantageOptions&)>& change) {
    PolicyOptions policy;
    AdvantageOptions advantage;
    change(policy, advantage);
    return message_of([&] { check(policy, advantage); });
  };
  const std::pair<const char*, std::function<void(PolicyOptions&, AdvantageOptions&)>> refused[] = {
      {"loss_type: 'ppo'", [](auto& p, auto&) { p.loss_type = "ppo"; }},
      {"importance_sampling_level: 'word'", [](auto& p, auto&) { p.importance_sampling_level = "word"; }},
      {"kl_estimator: 'k4'", [](auto& p, auto&) { p.kl_estimator = "k4"; }},
      {"epsilon_high: not set", [](auto& p, auto&) { p.loss_type = "cispo"; }},
      {"delta: 4", [](auto& p, auto&) { p.loss_type = "cispo", p.epsilon_high = 5, p.delta = 4; }},
      {"delta: 4", [](auto& p, auto&) { p.loss_type = "sapo", p.delta = 4; }},
      {"kl_estimator: k1 as a loss",
       [](auto& p, auto&) { p.beta = 0.1, p.kl_estimator = "k1", p.use_bias_correction_kl = false; }},
      {"num_generations: 1", [](auto&, auto& a) { a.num_generations = 1; }},
      {"num_generations: 1", [](auto&, auto& a) { a.num_generations = 1, a.advantage_estimator = "rloo"; }},
      {"vllm_importance_sampling_mode: sequence_mask", [](auto& p, auto&) { p.loss_type = "vespo"; }},
      {"vllm_importance_sampling_clip_min: 4", [](auto& p, auto&) { p.vllm_importance_sampling_clip_min = 4; }},
      {"vllm_importance_sampling_mode: token_truncate needs",
       [](auto& p, auto&) {
         p.vllm_importance_sampling_mode = "token_truncate", p.vllm_importance_sampling_clip_max = std::nullopt;
       }},
      {"top_entropy_quantile: 1.5", [](auto& p, auto&) { p.top_entropy_quantile = 1.5; }},
      {"epsilon: -0.1", [](auto& p, auto&) { p.epsilon = -0.1; }},
      {"beta: nan", [](auto& p, auto&) { p.beta = NAN; }},
      {"off_policy_mask_threshold: 0", [](auto& p, auto&) { p.off_policy_mask_threshold = 0; }},
      {"kl_in_reward: with multi_objective",
       [](auto& p, auto& a) {
         p.beta = 0.1, p.kl_in_reward = true, a.multi_objective_aggregation = "normalize_then_sum";
       }},
      {"multi_objective_aggregation: normalize_then_sum",
       [](auto&, auto& a) { a.advantage_estimator = "rloo", a.multi_objective_aggregation = "normalize_then_sum"; }},
      {"scale_rewards: 'all'", [](auto&, auto& a) { a.scale_rewards = "all"; }},
      {"advantage_estimator: 'opo'", [](auto&, auto& a) { a.advantage_estimator = "opo"; }},
      {"normalize_advantages", [](auto&, auto& a) { a.normalize_advantages = true; }},
      {"loss_type: rloo", [](auto& p, auto& a) { p.loss_type = "rloo", a.advantage_estimator = "gae"; }},
      {"importance_sampling_level: sequence with loss_type rloo",
       [](auto& p, auto&) { p.loss_type = "rloo", p.importance_sampling_level = "sequence"; }},
  };
  for (const auto& [message, change] : refused)
    EXPECT_EQ(refusal(change).find(message), 0) << message << "\n" << refusal(change);
  EXPECT_TRUE(check({}, {}).empty());
  for (const std::string loss_type : kLossTypes) EXPECT_EQ(find_policy_loss(loss_type).term != nullptr, true);
  PolicyOptions gspo{.loss_type = "grpo", .importance_sampling_level = "sequence"};
  EXPECT_TRUE(check(gspo, {}).empty());
  gspo.loss_type = "dapo";
  EXPECT_EQ(check(gspo, {}).size(), 1);
  EXPECT_EQ(check({.loss_type = "bnpo"}, {}).size(), 1);
}

TEST(Tally, PiecesAddUp) {
  Tally a, b, none;
  a.mean("m", 3, 2), b.mean("m", 1, 2), none.mean("m", NAN, 5);
  a.least("l", 4), b.least("l", 2), none.least("l", NAN);
  a.greatest("g", 4), b.greatest("g", 2), none.greatest("g", NAN);
  EXPECT_TRUE(none.values().empty());
  Tally sum = none;
  sum.add(a), sum.add(b), sum.add(none);
  const std::map<std::string, double> expected = {{"m", 1}, {"l", 2}, {"g", 4}};
  EXPECT_EQ(sum.values(), expected);
  Tally ranks = a;
  ranks.take(b.numbers()), ranks.take(none.numbers());
  EXPECT_EQ(ranks.values(), expected);
  EXPECT_NE(message_of([&] { a.least("m", 1); }), "");
  EXPECT_NE(message_of([&] { a.take({1}); }), "");
}

}  // namespace
}  // namespace cairn::rl
