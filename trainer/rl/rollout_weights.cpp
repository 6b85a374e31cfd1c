#include "trainer/rl/rollout_weights.h"

#include "models/kernels/check.h"
#include "trainer/rl/names.h"

namespace cairn::rl {
namespace {

double bounded(double ratio, const RolloutMode& mode, const PolicyOptions& options) {
  const double low = options.vllm_importance_sampling_clip_min.value_or(-HUGE_VAL);
  const double high = options.vllm_importance_sampling_clip_max.value_or(HUGE_VAL);
  if (mode.masks) return ratio < low || ratio > high ? 0 : ratio;
  return std::clamp(ratio, low, high);
}

}  // namespace

const RolloutMode& find_rollout_mode(const std::string& name) {
  static const std::map<std::string, RolloutMode> modes = {{"token_truncate", {false, false}},
                                                           {"token_mask", {false, true}},
                                                           {"sequence_truncate", {true, false}},
                                                           {"sequence_mask", {true, true}}};
  return find_name(modes, "vllm_importance_sampling_mode", name);
}

at::Tensor rollout_weights(const at::Tensor& old_logprobs, const at::Tensor& rollout_logprobs, const at::Tensor& mask,
                           const PolicyOptions& options, Tally& metrics) {
  const RolloutMode& mode = find_rollout_mode(options.vllm_importance_sampling_mode);
  const int64_t B = mask.size(0), T = mask.size(1);
  kernels::check_floats(old_logprobs, {B, T}, "rollout weights", "old_logprobs");
  kernels::check_floats(rollout_logprobs, {B, T}, "rollout weights", "rollout_logprobs");
  const float *old = old_logprobs.const_data_ptr<float>(), *rollout = rollout_logprobs.const_data_ptr<float>();
  const bool* counts = mask.const_data_ptr<bool>();
  at::Tensor out = at::ones({B, T}, at::kDouble);
  double* weight = out.mutable_data_ptr<double>();

  double gap = 0, known = 0, largest_gap = NAN, sum = 0, weights = 0, least = NAN, greatest = NAN;
  auto report = [&](double w) {
    sum += w, ++weights;
    least = std::fmin(least, w), greatest = std::fmax(greatest, w);
  };
  for (int64_t b = 0; b < B; ++b) {
    double log_ratio = 0;
    for (int64_t t = b * T; t < (b + 1) * T; ++t) {
      if (!counts[t]) continue;
      const bool unknown = std::isnan(rollout[t]);
      const double x = unknown ? 0.0 : static_cast<double>(old[t]) - rollout[t];
      if (!unknown) gap += std::abs(x), ++known, largest_gap = std::fmax(largest_gap, std::abs(x));
      log_ratio += x;
      if (!mode.sequence) report(weight[t] = bounded(std::exp(x), mode, options));
    }
    if (!mode.sequence) continue;
    const double w = bounded(std::exp(log_ratio), mode, options);
    report(w);
    for (int64_t t = b * T; t < (b + 1) * T; ++t) {
      if (counts[t]) weight[t] = w;
    }
  }
  metrics.mean("sampling/sampling_logp_difference/mean", gap, known);
  metrics.greatest("sampling/sampling_logp_difference/max", largest_gap);
  metrics.mean("sampling/importance_sampling_ratio/mean", sum, weights);
  metrics.least("sampling/importance_sampling_ratio/min", least);
  metrics.greatest("sampling/importance_sampling_ratio/max", greatest);
  return out;
}

}  // namespace cairn::rl
