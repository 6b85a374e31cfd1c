#include "trainer/rl/policy_loss.h"

#include "models/kernels/check.h"
#include "trainer/rl/kl.h"
#include "trainer/rl/losses/loss.h"
#include "trainer/rl/rollout_weights.h"

namespace cairn::rl {
namespace {

constexpr const char* kPlace = "policy loss";

void check_batch(const PolicyBatch& batch, const PolicyOptions& options) {
  const at::IntArrayRef shape = batch.logprobs.sizes();
  if (shape.size() != 2)
    throw std::invalid_argument(fmt::format("[{}] logprobs: expected [B, T], got {}", kPlace, shape.vec()));
  auto floats = [&](const at::Tensor& x, const char* name, bool needed) {
    if (needed || x.defined()) kernels::check_floats(x, shape, kPlace, name);
  };
  floats(batch.logprobs, "logprobs", true);
  floats(batch.old_logprobs, "old_logprobs",
         batch.rollout_logprobs.defined() && options.vllm_importance_sampling_correction);
  floats(batch.ref_logprobs, "ref_logprobs", options.beta != 0 && !options.kl_in_reward);
  floats(batch.rollout_logprobs, "rollout_logprobs", false);
  floats(batch.entropies, "entropies", needs_entropies(options));
  kernels::check_tensor(batch.mask, at::kBool, shape, kPlace, "mask");
  const bool by_token = batch.advantages.defined() && batch.advantages.dim() == 2;
  kernels::check_floats(batch.advantages, by_token ? shape : shape.slice(0, 1), kPlace, "advantages");
}

// Tokens that count: those of masked-out completions do not.
at::Tensor tokens_of(const at::Tensor& mask, const at::Tensor& truncated, const PolicyOptions& options) {
  if (!options.mask_truncated_completions) return mask;
  kernels::check_tensor(truncated, at::kBool, mask.sizes().slice(0, 1), kPlace, "truncated");
  return mask.logical_and(truncated.logical_not().unsqueeze(1));
}

// Sums over the tokens or, where a ratio stands for a whole completion, over the completions.
struct Share {
  double sum = 0, count = 0;
  void add(double value) { sum += value, ++count; }
  double mean() const { return count > 0 ? sum / count : NAN; }
};

// One micro-batch on its way.
class Loss {
 public:
  Loss(const PolicyBatch& batch, const PolicyCounts& step, const PolicyOptions& options)
      : batch_(batch),
        step_(step),
        options_(options),
        loss_(find_policy_loss(options.loss_type)),
        kl_(options.beta != 0 && !options.kl_in_reward ? find_kl_estimator(options.kl_estimator) : nullptr),
        by_completion_(options.importance_sampling_level == "sequence" || loss_.summed_ratio),
        T_(batch.logprobs.size(1)) {
    tokens_ = tokens_of(batch.mask, batch.truncated, options);
    micro_batch_tokens_ = static_cast<double>(std::max<int64_t>(tokens_.sum().item<int64_t>(), 1));
    if (batch.rollout_logprobs.defined() && options.vllm_importance_sampling_correction)
      weights_ = rollout_weights(batch.old_logprobs, batch.rollout_logprobs, tokens_, options, out_.metrics);
    out_.dlogprobs = at::zeros(batch.logprobs.sizes(), at::kFloat);
  }

  PolicyOutput run(double entropy_coef) {
    for (int64_t b = 0; b < batch_.logprobs.size(0); ++b) completion(b);
    out_.loss = out_.policy_loss;
    if (options_.entropy_coef != 0 || options_.use_adaptive_entropy) entropy_bonus(entropy_coef);
    report();
    return std::move(out_);
  }

 private:
  const float* row(const at::Tensor& x, int64_t b) const { return x.const_data_ptr<float>() + b * T_; }
  // The proximal policy's; a loss without it is differentiated at ratio 1.
  const float* old_row(int64_t b) const {
    return row(batch_.old_logprobs.defined() ? batch_.old_logprobs : batch_.logprobs, b);
  }
  double advantage(int64_t b, int64_t t) const {
    const float* A = batch_.advantages.const_data_ptr<float>();
    return batch_.advantages.dim() == 1 ? A[b] : A[b * T_ + t];
  }
  bool learns_from(int64_t b, int64_t t) const {
    return options_.top_entropy_quantile >= 1 || row(batch_.entropies, b)[t] >= step_.entropy_threshold;
  }

  // Off-policy sequence masking (DeepSeek-V3.2, eq. 9): the mean of log(sampler / pi) over the completion.
  double drift(int64_t b, const std::vector<int64_t>& at) const {
    const float* logp = row(batch_.logprobs, b);
    const float* sampler = batch_.rollout_logprobs.defined() ? row(batch_.rollout_logprobs, b) : old_row(b);
    double sum = 0;
    for (const int64_t t : at) {
      if (!std::isnan(sampler[t])) sum += static_cast<double>(sampler[t]) - logp[t];
    }
    return sum / static_cast<double>(std::max<size_t>(at.size(), 1));
  }

  void completion(int64_t b) {
    std::vector<int64_t> at;  // positions that count
    const bool* counts = tokens_.const_data_ptr<bool>() + b * T_;
    for (int64_t t = 0; t < T_; ++t) {
      if (counts[t]) at.push_back(t);
    }
    const double n = static_cast<double>(std::max<size_t>(at.size(), 1));
    const double divisor = loss_.divisor({n, micro_batch_tokens_, step_}, options_);
    const float *logp = row(batch_.logprobs, b), *old = old_row(b);
    float* gradient = out_.dlogprobs.mutable_data_ptr<float>() + b * T_;

    std::vector<double> log_ratios, weights;
    double log_ratio = 0;  // of the completion
    for (const int64_t t : at) {
      log_ratios.push_back(static_cast<double>(logp[t]) - old[t]);
      weights.push_back(weights_.defined() ? weights_.const_data_ptr<double>()[b * T_ + t] : 1.0);
      log_ratio += log_ratios.back();
    }
    const double share = loss_.summed_ratio ? 1 : 1 / n;  // d log(ratio of the completion) / d logp of a token
    log_ratio *= share;
    const double log_weight = loss_.log_weight ? loss_.log_weight(log_ratios, weights) : 0;
    const double off_policy = options_.off_policy_mask_threshold ? drift(b, at) : 0;

    // One weight a completion, also of one without tokens.
    if (batch_.advantages.dim() == 1)
      phi_.add(loss_.term({.advantage = advantage(b, 0), .log_weight = log_weight}, options_).weight);
    Share low, high;
    double dlog_ratio = 0, sum = 0;  // by the completion's log-ratio; of the terms
    for (size_t i = 0; i < at.size(); ++i) {
      const int64_t t = at[i];
      const double A = advantage(b, t), ratio = std::exp(by_completion_ ? log_ratio : log_ratios[i]);
      const Term term = loss_.term({ratio, A, logp[t], log_weight}, options_);
      double scale = loss_.log_weight ? 1 : weights[i];
      if (options_.off_policy_mask_threshold && A < 0 && off_policy > *options_.off_policy_mask_threshold) scale = 0;
      if (!learns_from(b, t)) scale = 0;
      // A scale of 0 drops a term that is infinite, too.
      double value = scale != 0 ? scale * term.loss : 0, dlogp = scale != 0 ? scale * term.dlogp : 0;
      double dratio = scale != 0 ? scale * term.dlog_ratio : 0;
      if (kl_) {
        const Kl kl = kl_(logp[t], row(batch_.ref_logprobs, b)[t]);
        const double weight = options_.use_bias_correction_kl ? ratio : 1;
        value += options_.beta * weight * kl.value;
        dlogp += options_.beta * weight * kl.dlogp;
        if (options_.use_bias_correction_kl) dratio += options_.beta * weight * kl.value;
        kl_share_.add(weight * kl.value);
      }
      sum += value;
      gradient[t] = static_cast<float>((by_completion_ ? dlogp : dlogp + dratio) / divisor);
      dlog_ratio += dratio;
      low.add(term.low), high.add(term.high);
      if (batch_.advantages.dim() == 2) phi_.add(term.weight);
    }
    if (by_completion_) {
      for (const int64_t t : at) gradient[t] += static_cast<float>(dlog_ratio * share / divisor);
    }
    out_.policy_loss += sum / divisor;
    collect(low, high);
  }

  // A ratio of the completion is clipped once, however many tokens it has; without tokens it is 1 and is not.
  void collect(const Share& low, const Share& high) {
    const bool once = by_completion_ && batch_.advantages.dim() == 1;
    const double count = once ? 1 : low.count;
    const double low_mean = once && low.count == 0 ? 0 : low.mean(),
                 high_mean = once && high.count == 0 ? 0 : high.mean();
    if (count > 0) {
      low_.sum += low_mean * count, low_.count += count;
      high_.sum += high_mean * count, high_.count += count;
    }
    lowest_ = std::fmin(lowest_, low_mean), highest_ = std::fmax(highest_, high_mean);
  }

  // -coef H, H the mean entropy of the tokens of the step that are learnt from.
  void entropy_bonus(double coef) {
    out_.dentropies = at::zeros(batch_.logprobs.sizes(), at::kFloat);
    const double each = coef / static_cast<double>(std::max<int64_t>(step_.entropy_tokens, 1));
    double sum = 0;
    for (int64_t b = 0; b < batch_.logprobs.size(0); ++b) {
      for (int64_t t = 0; t < T_; ++t) {
        if (!tokens_.const_data_ptr<bool>()[b * T_ + t] || !learns_from(b, t)) continue;
        sum += row(batch_.entropies, b)[t];
        out_.dentropies.mutable_data_ptr<float>()[b * T_ + t] = static_cast<float>(-each);
      }
    }
    out_.loss -= each * sum;
    out_.metrics.mean("policy_loss", out_.policy_loss,
                      1.0 / static_cast<double>(std::max<int64_t>(step_.micro_batches, 1)));
  }

  void report() {
    Tally& metrics = out_.metrics;
    if (kl_) metrics.mean("kl", kl_share_.sum, kl_share_.count);
    if (batch_.entropies.defined()) {
      const at::Tensor entropies = batch_.entropies;
      Share entropy;
      for (int64_t i = 0; i < entropies.numel(); ++i) {
        if (tokens_.const_data_ptr<bool>()[i]) entropy.add(entropies.const_data_ptr<float>()[i]);
      }
      metrics.mean("entropy", entropy.sum, entropy.count);
    }
    switch (loss_.reports) {
      case PolicyLoss::Reports::clip_ratio:
        metrics.mean("clip_ratio/low_mean", low_.sum, low_.count);
        metrics.mean("clip_ratio/high_mean", high_.sum, high_.count);
        metrics.mean("clip_ratio/region_mean", low_.sum + high_.sum, low_.count);
        metrics.least("clip_ratio/low_min", lowest_);
        metrics.greatest("clip_ratio/high_max", highest_);
        break;
      case PolicyLoss::Reports::cispo_clip_ratio:
        metrics.mean("cispo_clip_ratio", high_.sum, high_.count);
        break;
      case PolicyLoss::Reports::phi:
        metrics.mean("vespo/phi_seq_mean", phi_.sum, phi_.count);
        break;
      case PolicyLoss::Reports::nothing:
        break;
    }
  }

  const PolicyBatch& batch_;
  const PolicyCounts& step_;
  const PolicyOptions& options_;
  const PolicyLoss& loss_;
  const KlEstimator kl_;      // null: no KL in the loss
  const bool by_completion_;  // one ratio for all tokens of a completion
  const int64_t T_;
  at::Tensor tokens_;   // bool [B, T]
  at::Tensor weights_;  // float64 [B, T]; undefined: all 1
  double micro_batch_tokens_ = 1;
  Share kl_share_, low_, high_, phi_;
  double lowest_ = NAN, highest_ = NAN;
  PolicyOutput out_;
};

}  // namespace

PolicyCounts& PolicyCounts::operator+=(const PolicyCounts& more) {
  completions += more.completions, tokens += more.tokens, entropy_tokens += more.entropy_tokens;
  micro_batches += more.micro_batches, entropy_threshold = more.entropy_threshold;
  return *this;
}

PolicyCounts count(const at::Tensor& mask, const at::Tensor& truncated, const PolicyOptions& options,
                   const at::Tensor& entropies, double entropy_threshold) {
  kernels::check_tensor(mask, at::kBool, {mask.size(0), mask.size(1)}, kPlace, "mask");
  at::Tensor tokens = tokens_of(mask, truncated, options);
  PolicyCounts counts{.completions = tokens.size(0), .tokens = tokens.sum().item<int64_t>(), .micro_batches = 1};
  if (options.top_entropy_quantile < 1) {
    kernels::check_floats(entropies, mask.sizes(), kPlace, "entropies");
    counts.entropy_threshold = entropy_threshold;
    tokens = tokens.logical_and(entropies >= entropy_threshold);
  }
  counts.entropy_tokens = tokens.sum().item<int64_t>();
  return counts;
}

bool needs_entropies(const PolicyOptions& options) {
  return options.top_entropy_quantile < 1 || options.entropy_coef != 0 || options.use_adaptive_entropy;
}

std::vector<float> counted_entropies(const at::Tensor& mask, const at::Tensor& truncated, const PolicyOptions& options,
                                     const at::Tensor& entropies) {
  kernels::check_tensor(mask, at::kBool, entropies.sizes(), kPlace, "mask");
  const at::Tensor known = entropies.masked_select(tokens_of(mask, truncated, options));
  return {known.const_data_ptr<float>(), known.const_data_ptr<float>() + known.numel()};
}

double entropy_threshold(std::vector<float> entropies, double top_entropy_quantile) {
  if (entropies.empty()) return HUGE_VAL;
  std::sort(entropies.begin(), entropies.end());
  const float rank = static_cast<float>(1 - top_entropy_quantile) * static_cast<float>(entropies.size() - 1);
  const size_t below = static_cast<size_t>(rank), above = std::min(below + 1, entropies.size() - 1);
  const float part = rank - static_cast<float>(below), a = entropies[below], b = entropies[above];
  return part < 0.5f ? a + part * (b - a) : b - (b - a) * (1 - part);
}

PolicyOutput policy_loss(const PolicyBatch& batch, const PolicyCounts& step, const PolicyOptions& options,
                         double entropy_coef) {
  check_batch(batch, options);
  if (step.completions < batch.logprobs.size(0)) {
    throw std::invalid_argument(fmt::format("[{}] the step has {} completions, this micro-batch alone {}", kPlace,
                                            step.completions, batch.logprobs.size(0)));
  }
  return Loss(batch, step, options).run(entropy_coef);
}

double EntropyControl::applied(const PolicyOptions& options) const {
  if (!options.use_adaptive_entropy) return coef;
  return last_entropy && *last_entropy <= options.entropy_target ? coef : 0;
}

void EntropyControl::observe(double mean_entropy, const PolicyOptions& options) {
  if (!options.use_adaptive_entropy) return;
  const double step = mean_entropy <= options.entropy_target ? options.entropy_coef_delta : -options.entropy_coef_delta;
  coef = step > 0 ? std::min(coef + step, options.entropy_coef_max) : std::max(coef + step, options.entropy_coef_min);
  last_entropy = mean_entropy;
}

}  // namespace cairn::rl
