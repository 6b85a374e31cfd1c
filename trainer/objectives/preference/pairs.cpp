#include "trainer/objectives/preference/pairs.h"

#include <algorithm>

#include "models/kernels/check.h"
#include "trainer/objectives/preference/divergence.h"
#include "trainer/objectives/preference/pair_table.h"
#include "trainer/rl/names.h"

namespace cairn::preference {

const std::map<std::string, PairLoss>& pair_losses() {
  using enum PairLoss::Likelihood;
  static const std::map<std::string, PairLoss> table = {
      // of TRL's DPOTrainer
      {"sigmoid", {.term = dpo_sigmoid, .divergence = true}},
      {"sigmoid_norm", {.term = dpo_sigmoid, .averaged = true, .divergence = true}},
      {"hinge", {.term = hinge, .divergence = true}},
      {"ipo", {.term = ipo, .averaged = true, .divergence = true}},
      {"robust", {.term = robust, .divergence = true, .smoothing = true}},
      {"exo_pair", {.term = exo_pair, .divergence = true, .smoothing = true}},
      {"discopop", {.term = discopop, .divergence = true}},
      {"nca_pair", {.term = nca_pair}},
      {"bco_pair", {.term = bco_pair}},
      {"sppo_hard", {.term = sppo_hard}},
      {"apo_zero", {.term = apo_zero}},
      {"apo_down", {.term = apo_down}},
      // of its CPOTrainer, whose loss_types sigmoid, hinge, ipo have no reference
      {"cpo", {.term = smoothed, .reference = false, .smoothing = true, .likelihood = cpo_alpha}},
      {"cpo_hinge", {.term = hinge, .reference = false, .likelihood = cpo_alpha}},
      {"cpo_ipo", {.term = ipo, .reference = false, .averaged = true, .likelihood = cpo_alpha}},
      {"simpo", {.term = simpo, .reference = false, .averaged = true, .smoothing = true, .likelihood = cpo_alpha}},
      // of its ORPOTrainer
      {"orpo", {.term = orpo, .reference = false, .averaged = true, .likelihood = one}},
  };
  return table;
}

namespace {

constexpr const char* kPlace = "preference loss";

// A completion on its way to its score and back.
struct Completion {
  double score = 0;
  double derivative = 0;  // of the score by the summed log-probability
  double reward = 0;      // over beta: what the metrics call a reward
};

Completion complete(const PairLoss& loss, Divergence divergence, const Options& options, double logp, double ref_logp,
                    int64_t length) {
  const double n = loss.averaged ? static_cast<double>(std::max<int64_t>(length, 1)) : 1;
  if (!loss.reference) return {logp / n, 1 / n, logp / n};
  const Score score = divergence(logp - ref_logp, options);
  return {score.value / n, score.derivative / n, logp - ref_logp};
}

void check_batch(const PairBatch& batch, const Needs& needs) {
  const at::IntArrayRef shape = batch.chosen_logps.sizes();
  if (shape.size() != 1)
    throw std::invalid_argument(fmt::format("[{}] chosen_logps: expected [P], got {}", kPlace, shape.vec()));
  kernels::check_floats(batch.chosen_logps, shape, kPlace, "chosen_logps");
  kernels::check_floats(batch.rejected_logps, shape, kPlace, "rejected_logps");
  kernels::check_tensor(batch.chosen_lengths, at::kLong, shape, kPlace, "chosen_lengths");
  kernels::check_tensor(batch.rejected_lengths, at::kLong, shape, kPlace, "rejected_lengths");
  if (!needs.reference) return;
  kernels::check_floats(batch.ref_chosen_logps, shape, kPlace, "ref_chosen_logps");
  kernels::check_floats(batch.ref_rejected_logps, shape, kPlace, "ref_rejected_logps");
}

double number(const at::Tensor& x, int64_t i) { return x.defined() ? x.const_data_ptr<float>()[i] : 0; }

// Log-probabilities as the metrics show them: averaged where the loss averages and has no reference.
double shown(const PairLoss& loss, double logp, int64_t length) {
  return loss.averaged && !loss.reference ? logp / static_cast<double>(std::max<int64_t>(length, 1)) : logp;
}

}  // namespace

PairOutput pair_loss(const PairBatch& batch, const PairCounts& step, const Options& options) {
  const Needs needs = check(options);
  check_batch(batch, needs);
  const Divergence divergence = find_divergence(options.f_divergence_type);
  const int64_t P = batch.chosen_logps.size(0);
  if (step.pairs < P)
    throw std::invalid_argument(
        fmt::format("[{}] the step has {} pairs, this micro-batch alone {}", kPlace, step.pairs, P));
  std::vector<double> dchosen(P, 0.0), drejected(P, 0.0);
  const double pairs = static_cast<double>(std::max<int64_t>(step.pairs, 1));
  const int64_t *chosen_length = batch.chosen_lengths.const_data_ptr<int64_t>(),
                *rejected_length = batch.rejected_lengths.const_data_ptr<int64_t>();
  PairOutput out;
  double chosen_rewards = 0, rejected_rewards = 0, right = 0, chosen_logps = 0, rejected_logps = 0, odds = 0,
         odds_ratio = 0;
  for (size_t l = 0; l < options.loss_type.size(); ++l) {
    const PairLoss& loss = rl::find_name(pair_losses(), "loss_type", options.loss_type[l]);
    const double weight = options.loss_weights.empty() ? 1 : options.loss_weights[l];
    double sum = 0;
    for (int64_t i = 0; i < P; ++i) {
      const Completion chosen = complete(loss, divergence, options, number(batch.chosen_logps, i),
                                         number(batch.ref_chosen_logps, i), chosen_length[i]);
      const Completion rejected = complete(loss, divergence, options, number(batch.rejected_logps, i),
                                           number(batch.ref_rejected_logps, i), rejected_length[i]);
      const Pair pair{chosen.score, rejected.score};
      const PairTerm term = loss.term(pair, options);
      sum += term.loss;
      dchosen[i] += weight * term.dchosen * chosen.derivative / pairs;
      drejected[i] += weight * term.drejected * rejected.derivative / pairs;
      if (l > 0) continue;  // the metrics are those of the first loss
      chosen_rewards += options.beta * chosen.reward, rejected_rewards += options.beta * rejected.reward;
      right += chosen.reward > rejected.reward;
      chosen_logps += shown(loss, number(batch.chosen_logps, i), chosen_length[i]);
      rejected_logps += shown(loss, number(batch.rejected_logps, i), rejected_length[i]);
      if (loss.term == orpo) odds += log_odds(pair), odds_ratio += log_sigmoid(log_odds(pair));
    }
    out.loss += weight * sum / pairs;
    if (loss.likelihood == PairLoss::Likelihood::none) continue;
    const double share = loss.likelihood == PairLoss::Likelihood::one ? 1 : options.cpo_alpha;
    const double each = -share * weight / static_cast<double>(std::max<int64_t>(step.likelihood_tokens, 1));
    out.dlikelihood += each;
    out.loss += each * batch.likelihood;
  }
  out.dchosen = at::tensor(dchosen, at::kDouble).to(at::kFloat);
  out.drejected = at::tensor(drejected, at::kDouble).to(at::kFloat);

  const double n = static_cast<double>(P);
  out.metrics.mean("rewards/chosen", chosen_rewards, n);
  out.metrics.mean("rewards/rejected", rejected_rewards, n);
  out.metrics.mean("rewards/accuracies", right, n);
  out.metrics.mean("rewards/margins", chosen_rewards - rejected_rewards, n);
  out.metrics.mean("logps/chosen", chosen_logps, n);
  out.metrics.mean("logps/rejected", rejected_logps, n);
  if (needs.likelihood) {
    // Shares of micro-batches add up, their weights to 1.
    out.metrics.mean("nll_loss", -batch.likelihood / static_cast<double>(std::max<int64_t>(step.likelihood_tokens, 1)),
                     n / pairs);
  }
  if (options.loss_type[0] == "orpo") {
    out.metrics.mean("log_odds_ratio", odds_ratio, n);
    out.metrics.mean("log_odds_chosen", odds, n);
  }
  return out;
}

}  // namespace cairn::preference
