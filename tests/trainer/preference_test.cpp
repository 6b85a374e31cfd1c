// labels: quick
// Losses of preferences against autograd through the plain formulas in float64.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/models/kernel_checks.h"
#include "trainer/objectives/preference/pair_table.h"
#include "trainer/objectives/preference/pairs.h"
#include "trainer/objectives/preference/single_table.h"
#include "trainer/objectives/preference/singles.h"

namespace cairn::preference {
namespace {

using kernels::testing::expect_close;
using kernels::testing::message_of;
using kernels::testing::random_floats;

at::Tensor wide(const at::Tensor& x) { return x.to(at::kDouble); }

PairBatch make_batch() {
  PairBatch batch;
  batch.chosen_lengths = at::tensor(std::vector<int64_t>{4, 1, 7, 0, 12});
  batch.rejected_lengths = at::tensor(std::vector<int64_t>{2, 5, 7, 3, 0});
  batch.chosen_logps = -(random_floats({5}, 1).abs() + 0.2) * batch.chosen_lengths;
  batch.rejected_logps = -(random_floats({5}, 2).abs() + 0.2) * batch.rejected_lengths;
  batch.ref_chosen_logps = batch.chosen_logps + random_floats({5}, 3, 2);
  batch.ref_rejected_logps = batch.rejected_logps + random_floats({5}, 4, 2);
  batch.likelihood = -17.5;
  return batch;
}

// The scores of f-DPO.
at::Tensor score(const at::Tensor& log_ratio, const Options& o) {
  if (o.f_divergence_type == "forward_kl") return 1 - (-log_ratio).exp();
  if (o.f_divergence_type == "js_divergence") return std::log(2) + log_sigmoid(log_ratio);
  if (o.f_divergence_type == "alpha_divergence" && o.f_alpha_divergence_coef != 1) {
    const double a = o.f_alpha_divergence_coef - 1;
    return ((a * log_ratio).exp() - 1) / a;
  }
  return log_ratio;
}

at::Tensor plain(const std::string& type, const at::Tensor& chosen, const at::Tensor& rejected, const PairBatch& batch,
                 const Options& o) {
  const at::Tensor c_len = wide(batch.chosen_lengths).clamp_min(1), r_len = wide(batch.rejected_lengths).clamp_min(1);
  const double beta = o.beta, e = o.label_smoothing;
  if (type.starts_with("cpo") || type == "simpo" || type == "orpo") {
    const bool averaged = type != "cpo" && type != "cpo_hinge";
    const at::Tensor c = averaged ? chosen / c_len : chosen, r = averaged ? rejected / r_len : rejected;
    if (type == "cpo_hinge") return (1 - beta * (c - r)).clamp_min(0);
    if (type == "cpo_ipo") return (c - r - 1 / (2 * beta)).pow(2);
    if (type == "orpo") {
      const at::Tensor odds = c - r - ((1 - c.exp()).log() - (1 - r.exp()).log());
      return -beta * log_sigmoid(odds);
    }
    const at::Tensor z = beta * (c - r) - (type == "simpo" ? o.simpo_gamma : 0);
    return -(1 - e) * log_sigmoid(z) - e * log_sigmoid(-z);
  }
  const at::Tensor c_ratio = chosen - wide(batch.ref_chosen_logps), r_ratio = rejected - wide(batch.ref_rejected_logps);
  const at::Tensor c = score(c_ratio, o), r = score(r_ratio, o), z = beta * (c - r);
  if (type == "sigmoid") return -log_sigmoid(z);
  if (type == "sigmoid_norm") return -log_sigmoid(beta * (c / c_len - r / r_len));
  if (type == "hinge") return (1 - z).clamp_min(0);
  if (type == "ipo") return (c / c_len - r / r_len - 1 / (2 * beta)).pow(2);
  if (type == "robust") return (-(1 - e) * log_sigmoid(z) + e * log_sigmoid(-z)) / (1 - 2 * e);
  if (type == "exo_pair") {
    return log_sigmoid(z).exp() * (log_sigmoid(z) - std::log(1 - e)) +
           log_sigmoid(-z).exp() * (log_sigmoid(-z) - std::log(e));
  }
  if (type == "discopop") {
    const at::Tensor m = at::sigmoid(z / o.discopop_tau);
    return -log_sigmoid(z) * (1 - m) + (-z).exp() * m;
  }
  const at::Tensor a = beta * c_ratio, b = beta * r_ratio;
  if (type == "nca_pair") return -log_sigmoid(a) - 0.5 * log_sigmoid(-a) - 0.5 * log_sigmoid(-b);
  if (type == "bco_pair") return -log_sigmoid(a) - log_sigmoid(-b);
  if (type == "sppo_hard") return (c_ratio - 0.5 / beta).pow(2) + (r_ratio + 0.5 / beta).pow(2);
  if (type == "apo_zero") return 1 - at::sigmoid(a) + at::sigmoid(b);
  if (type == "apo_down") return at::sigmoid(a) + 1 - at::sigmoid(a - b);
  ADD_FAILURE() << type << " has no plain formula here";
  return chosen;
}

// Batches without an empty completion: at probability 1 the odds are infinite.
PairBatch without_empty(const PairBatch& batch) {
  PairBatch kept = batch;
  for (const auto member : {&PairBatch::chosen_logps, &PairBatch::rejected_logps, &PairBatch::ref_chosen_logps,
                            &PairBatch::ref_rejected_logps, &PairBatch::chosen_lengths, &PairBatch::rejected_lengths})
    kept.*member = (batch.*member).narrow(0, 0, 3).clone();
  return kept;
}

void expect_plain(const PairBatch& batch, const Options& options, const std::string& what) {
  const PairCounts step{.pairs = 8, .likelihood_tokens = 50};
  const PairOutput out = pair_loss(batch, step, options);
  at::AutoGradMode on(true);
  const at::Tensor chosen = wide(batch.chosen_logps).requires_grad_(),
                   rejected = wide(batch.rejected_logps).requires_grad_();
  const at::Tensor likelihood = at::full({}, batch.likelihood, at::kDouble).requires_grad_();
  at::Tensor loss = 0 * likelihood;
  for (size_t i = 0; i < options.loss_type.size(); ++i) {
    const std::string& type = options.loss_type[i];
    const double weight = options.loss_weights.empty() ? 1 : options.loss_weights[i];
    loss = loss + weight * plain(type, chosen, rejected, batch, options).sum() / 8;
    if (type == "orpo") loss = loss - weight * likelihood / 50;
    if (type.starts_with("cpo") || type == "simpo") loss = loss - weight * options.cpo_alpha * likelihood / 50;
  }
  const auto gradients = torch::autograd::grad({loss}, {chosen, rejected, likelihood});
  const double value = loss.item<double>();
  EXPECT_NEAR(out.loss, value, 1e-9 * (1 + std::abs(value))) << what;
  expect_close(out.dchosen, gradients[0], 2e-7, what + ", dchosen");
  expect_close(out.drejected, gradients[1], 2e-7, what + ", drejected");
  EXPECT_NEAR(out.dlikelihood, gradients[2].item<double>(), 1e-12) << what;
}

Options options_for(const std::string& type) {
  Options options{.loss_type = {type}};
  if (type == "robust" || type == "exo_pair" || type == "cpo" || type == "simpo") options.label_smoothing = 0.1;
  return options;
}

TEST(PairLoss, EqualsThePlainFormula) {
  for (const auto& [type, loss] : pair_losses()) {
    for (const double beta : {0.1, 0.7, 2.5}) {
      Options options = options_for(type);
      options.beta = beta;
      expect_plain(type == "orpo" ? without_empty(make_batch()) : make_batch(), options,
                   type + " beta " + std::to_string(beta));
    }
    if (!loss.divergence) continue;
    for (const char* divergence : {"forward_kl", "js_divergence", "alpha_divergence"}) {
      Options options = options_for(type);
      options.f_divergence_type = divergence;
      expect_plain(make_batch(), options, type + " " + divergence);
    }
  }
  Options simpo = options_for("simpo");
  simpo.simpo_gamma = 1.4, simpo.beta = 2, simpo.cpo_alpha = 0;
  expect_plain(make_batch(), simpo, "simpo alone");
  Options mixed{.loss_type = {"sigmoid", "bco_pair", "ipo"}, .loss_weights = {0.8, 0.2, 1.5}};
  expect_plain(make_batch(), mixed, "a mixture");
}

// Scores far from 0 give numbers, not infinities out of cancelling exponentials.
TEST(PairLoss, LargeScores) {
  for (const auto& [type, loss] : pair_losses()) {
    if (type == "discopop") continue;  // exp(-z) is its loss
    for (const double sign : {-1.0, 1.0}) {
      PairBatch batch = without_empty(make_batch());
      batch.chosen_logps = batch.chosen_logps.clamp_max(-3) * 500;
      batch.rejected_logps = batch.rejected_logps.clamp_max(-3) * 500;
      batch.ref_chosen_logps = batch.chosen_logps - sign * 900,
      batch.ref_rejected_logps = batch.rejected_logps + sign * 900;
      const PairOutput out = pair_loss(batch, {.pairs = 3, .likelihood_tokens = 1}, options_for(type));
      EXPECT_TRUE(std::isfinite(out.loss)) << type;
      EXPECT_TRUE(at::isfinite(out.dchosen).all().item<bool>() && at::isfinite(out.drejected).all().item<bool>())
          << type;
    }
  }
}

TEST(PairLoss, ClosedForms) {
  PairBatch batch = without_empty(make_batch());
  batch.ref_chosen_logps = batch.chosen_logps, batch.ref_rejected_logps = batch.rejected_logps;
  const PairCounts step{.pairs = 3};
  const auto at_start = [&](const char* type) { return pair_loss(batch, step, options_for(type)); };
  EXPECT_NEAR(at_start("sigmoid").loss, std::log(2), 1e-12);
  expect_close(at_start("sigmoid").dchosen, at::full({3}, -0.1 / 2 / 3), 1e-8, "sigmoid");
  EXPECT_NEAR(at_start("hinge").loss, 1, 1e-12);
  EXPECT_NEAR(at_start("ipo").loss, 25, 1e-9);  // (1 / (2 * 0.1))^2
  // An average over tokens: the gradient of a token of a long completion is smaller.
  expect_close(at_start("ipo").dchosen * batch.chosen_lengths, at::full({3}, -2 * 5.0 / 3), 1e-6, "ipo");
  // Robust DPO: with a flipped pair for every share e the loss is DPO's on average.
  Options robust = options_for("robust");
  PairBatch flipped = make_batch();
  std::swap(flipped.chosen_logps, flipped.rejected_logps);
  std::swap(flipped.ref_chosen_logps, flipped.ref_rejected_logps);
  const PairCounts five{.pairs = 5};
  EXPECT_NEAR(0.9 * pair_loss(make_batch(), five, robust).loss + 0.1 * pair_loss(flipped, five, robust).loss,
              pair_loss(make_batch(), five, {}).loss, 1e-9);
}

TEST(PairLoss, MetricsAndShares) {
  const PairBatch batch = make_batch();
  const PairOutput whole = pair_loss(batch, {.pairs = 5}, {});
  const auto metrics = whole.metrics.values();
  const at::Tensor c = 0.1 * (batch.chosen_logps - batch.ref_chosen_logps),
                   r = 0.1 * (batch.rejected_logps - batch.ref_rejected_logps);
  EXPECT_NEAR(metrics.at("rewards/chosen"), c.mean().item<double>(), 1e-6);
  EXPECT_NEAR(metrics.at("rewards/rejected"), r.mean().item<double>(), 1e-6);
  EXPECT_NEAR(metrics.at("rewards/margins"), (c - r).mean().item<double>(), 1e-6);
  EXPECT_NEAR(metrics.at("rewards/accuracies"), (c > r).to(at::kFloat).mean().item<double>(), 1e-6);
  EXPECT_NEAR(metrics.at("logps/chosen"), batch.chosen_logps.mean().item<double>(), 1e-5);
  EXPECT_FALSE(metrics.contains("nll_loss"));
  double loss = 0, gradient = 0;
  Tally joined;
  for (const auto& [first, rows] : {std::pair<int64_t, int64_t>{0, 2}, {2, 3}}) {
    PairBatch part = batch;
    for (const auto member : {&PairBatch::chosen_logps, &PairBatch::rejected_logps, &PairBatch::ref_chosen_logps,
                              &PairBatch::ref_rejected_logps, &PairBatch::chosen_lengths, &PairBatch::rejected_lengths})
      part.*member = (batch.*member).narrow(0, first, rows).clone();
    const PairOutput out = pair_loss(part, {.pairs = 5}, {});
    loss += out.loss, gradient += out.dchosen.sum().item<double>();
    joined.add(out.metrics);
  }
  EXPECT_NEAR(loss, whole.loss, 1e-12);
  EXPECT_NEAR(gradient, whole.dchosen.sum().item<double>(), 1e-7);
  for (const auto& [name, value] : metrics) EXPECT_NEAR(joined.values().at(name), value, 1e-9) << name;

  const PairBatch full = without_empty(batch);
  const auto orpo = pair_loss(full, {.pairs = 3, .likelihood_tokens = 35}, options_for("orpo")).metrics.values();
  EXPECT_NEAR(orpo.at("nll_loss"), 0.5, 1e-12);
  EXPECT_TRUE(orpo.contains("log_odds_ratio") && orpo.contains("log_odds_chosen"));
  // Rewards are of averaged log-probabilities there.
  EXPECT_NEAR(orpo.at("rewards/chosen"), 0.1 * (full.chosen_logps / full.chosen_lengths).mean().item<double>(), 1e-6);
}

TEST(SingleLoss, EqualsThePlainFormula) {
  SingleBatch batch;
  batch.logps = random_floats({6}, 1, 4) - 10, batch.ref_logps = batch.logps + random_floats({6}, 2, 3);
  batch.desirable = at::tensor(std::vector<int64_t>{1, 0, 0, 1, 0, 1}).to(at::kBool);
  for (const auto& [type, loss] : single_losses()) {
    Options options{.loss_type = {type}, .beta = 0.3, .desirable_weight = 1.3, .undesirable_weight = 0.6};
    const double kl = loss.kl ? 0.8 : 0;
    const SingleOutput out = single_loss(batch, 9, 0.8, options);
    at::AutoGradMode on(true);
    const at::Tensor logps = wide(batch.logps).requires_grad_(), ratio = logps - wide(batch.ref_logps);
    const at::Tensor good = 1 - at::sigmoid(0.3 * (ratio - kl)), bad = 1 - at::sigmoid(0.3 * (kl - ratio));
    const at::Tensor expected = at::where(batch.desirable, 1.3 * good, 0.6 * bad).sum() / 9;
    EXPECT_NEAR(out.loss, expected.item<double>(), 1e-9) << type;
    expect_close(out.dlogps, torch::autograd::grad({expected}, {logps})[0], 1e-7, type);
    const auto metrics = out.metrics.values();
    EXPECT_NEAR(metrics.at("rewards/chosen"),
                0.3 * (batch.logps - batch.ref_logps).masked_select(batch.desirable).mean().item<double>(), 1e-6);
    EXPECT_NEAR(metrics.at("logps/rejected"), batch.logps.masked_select(~batch.desirable).mean().item<double>(), 1e-5);
  }
  // One label alone.
  batch.desirable = at::ones({6}, at::kBool);
  const auto metrics = single_loss(batch, 6, 0, {.loss_type = {"kto"}}).metrics.values();
  EXPECT_FALSE(metrics.contains("rewards/rejected"));

  const at::Tensor a = at::tensor({-1.0f, -5.0f}), b = at::tensor({-2.0f, -4.5f});
  EXPECT_DOUBLE_EQ(kto_kl(a, b), 0.25);
  EXPECT_EQ(kto_kl(b, a), 0) << "never below 0";
  EXPECT_NE(message_of([] { kto_kl(at::zeros({0}), at::zeros({0})); }), "");
}

TEST(PreferenceOptions, WhatIsRefusedAndWhatIsNeeded) {
  const std::pair<const char*, Options> refused[] = {
      {"loss_type: 'dpo' is none of", {.loss_type = {"dpo"}}},
      {"loss_type: there is none", {.loss_type = {}}},
      {"loss_type: kto takes single completions", {.loss_type = {"kto", "sigmoid"}}},
      {"loss_type: sigmoid with simpo", {.loss_type = {"sigmoid", "simpo"}}},
      {"loss_type: orpo", {.loss_type = {"orpo", "cpo"}}},
      {"loss_weights: 1 weights for 2", {.loss_type = {"sigmoid", "hinge"}, .loss_weights = {1}}},
      {"beta: 0", {.beta = 0}},
      {"label_smoothing: it has no part", {.label_smoothing = 0.1}},
      {"label_smoothing: 0.5 with loss_type robust", {.loss_type = {"robust"}, .label_smoothing = 0.5}},
      {"label_smoothing: 0 with loss_type exo_pair", {.loss_type = {"exo_pair"}}},
      {"f_divergence_type: forward_kl with loss_type bco_pair",
       {.loss_type = {"bco_pair"}, .f_divergence_type = "forward_kl"}},
      {"f_divergence_type: 'tv'", {.f_divergence_type = "tv"}},
      {"f_divergence_type: it has no part", {.loss_type = {"kto"}, .f_divergence_type = "forward_kl"}},
      {"f_alpha_divergence_coef: it has no part", {.f_alpha_divergence_coef = 0.7}},
      {"simpo_gamma: it has no part", {.simpo_gamma = 1}},
      {"cpo_alpha: it has no part", {.cpo_alpha = 0.3}},
      {"desirable_weight: it has no part", {.desirable_weight = 2}},
  };
  for (const auto& [message, options] : refused)
    EXPECT_EQ(message_of([&] { check(options); }).find(message), 0) << message << "\n"
                                                                    << message_of([&] { check(options); });
  EXPECT_TRUE(check({}).reference);
  EXPECT_FALSE(check({}).likelihood);
  EXPECT_TRUE(check({.loss_type = {"kto"}}).kl);
  EXPECT_FALSE(check({.loss_type = {"apo_zero_unpaired"}}).kl);
  const Needs orpo = check({.loss_type = {"orpo"}}), simpo = check({.loss_type = {"simpo"}});
  EXPECT_TRUE(orpo.likelihood && orpo.prompt && !orpo.reference);
  EXPECT_TRUE(simpo.likelihood && !simpo.prompt && !simpo.reference);
  EXPECT_FALSE(check({.loss_type = {"simpo"}, .cpo_alpha = 0}).likelihood);

  PairBatch batch = make_batch();
  batch.ref_chosen_logps = at::Tensor();
  EXPECT_NE(message_of([&] { pair_loss(batch, {.pairs = 5}, {}); }).find("ref_chosen_logps"), std::string::npos);
  EXPECT_EQ(message_of([&] { pair_loss(batch, {.pairs = 5}, options_for("cpo")); }), "");
  EXPECT_NE(message_of([&] { pair_loss(make_batch(), {.pairs = 2}, {}); }).find("pairs"), std::string::npos);
}

}  // namespace
}  // namespace cairn::preference
