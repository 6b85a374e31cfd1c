// Truncated importance sampling: what corrects for samples that another policy drew than the proximal one (Yao 2025,
// "Your efficient RL framework secretly brings you off-policy training"; the modes are TRL's).
#pragma once

#include <ATen/ATen.h>

#include "trainer/metrics/tally.h"
#include "trainer/rl/options.h"

namespace cairn::rl {

struct RolloutMode {
  bool sequence, masks;
};
// token_truncate, token_mask, sequence_truncate or sequence_mask; throws std::invalid_argument on another name.
const RolloutMode& find_rollout_mode(const std::string& name);

// w = proximal / rollout of each token or, in the sequence modes, of the whole completion; truncate: clamped to
// [clip_min, clip_max]; mask: 0 outside of it. A constant of the loss. old_logprobs, rollout_logprobs float32 [B, T],
// mask bool [B, T]; a rollout log-probability that is NaN counts as equal to the proximal one. Returns float64 [B, T],
// 1 where the mask is false. Metrics: sampling/sampling_logp_difference/*, sampling/importance_sampling_ratio/*.
at::Tensor rollout_weights(const at::Tensor& old_logprobs, const at::Tensor& rollout_logprobs, const at::Tensor& mask,
                           const PolicyOptions& options, Tally& metrics);

}  // namespace cairn::rl
