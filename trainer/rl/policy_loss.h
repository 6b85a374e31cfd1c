// The policy loss of a micro-batch and its gradient by each token's log-probability, in closed form: what the backward
// pass of a fused linear + cross-entropy takes, and no graph is kept. Which loss: losses/table.cpp.
//
// B: completions of the micro-batch, T: positions of the longest one. The values of the micro-batches of a step, over
// all ranks, add up to the loss of the step, and so do the gradients: what a loss divides by is of the whole step.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <vector>

#include "trainer/metrics/tally.h"
#include "trainer/rl/options.h"

namespace cairn::rl {

// float32 [B, T] where nothing else is said, contiguous, on the CPU. Where `mask` is false nothing is read.
struct PolicyBatch {
  at::Tensor logprobs;          // log pi(token), pi the weights under training
  at::Tensor old_logprobs;      // of the proximal policy: the weights at the start of the step. Undefined: as logprobs
  at::Tensor ref_logprobs;      // of the reference; where beta != 0 and the KL is in the loss
  at::Tensor rollout_logprobs;  // of the policy that sampled, as it reported them; NaN: not known. May be undefined
  at::Tensor entropies;         // nats, of pi; where the options need them (needs_entropies), else may be undefined
  at::Tensor mask;              // bool: tokens of the completion that the policy chose
  at::Tensor advantages;        // [B] or [B, T]
  at::Tensor truncated;         // bool [B]: cut at max_completion_length; where mask_truncated_completions is set
};

// What is known of the whole step, over all micro-batches and ranks, before its first backward pass.
struct PolicyCounts {
  int64_t completions = 0;       // all, those masked out too
  int64_t tokens = 0;            // under the mask, without those of completions that are masked out
  int64_t entropy_tokens = 0;    // of these, those that the entropy bonus acts on
  int64_t micro_batches = 0;     // for bnpo
  double entropy_threshold = 0;  // entropy_threshold() of the step; where top_entropy_quantile < 1

  PolicyCounts& operator+=(const PolicyCounts& more);  // adds the counts, takes the threshold
};
// The counts of one micro-batch: `mask` and `truncated` as in PolicyBatch; with top_entropy_quantile < 1 `entropies`,
// too, and the threshold of the step. Throws std::invalid_argument where tensors do not fit.
PolicyCounts count(const at::Tensor& mask, const at::Tensor& truncated, const PolicyOptions& options,
                   const at::Tensor& entropies = {}, double entropy_threshold = 0);

bool needs_entropies(const PolicyOptions& options);

// The entropies [B, T] of the tokens that count, those of masked-out completions not among them: pieces of the step's
// list for entropy_threshold().
std::vector<float> counted_entropies(const at::Tensor& mask, const at::Tensor& truncated, const PolicyOptions& options,
                                     const at::Tensor& entropies);

// The least entropy that is learnt from: the (1 - top_entropy_quantile) quantile of the entropies of all tokens of the
// step, between two of them linearly, in float32 as torch.quantile. Infinite where there is no token.
double entropy_threshold(std::vector<float> entropies, double top_entropy_quantile);

struct PolicyOutput {
  double loss = 0;         // this micro-batch's share
  double policy_loss = 0;  // the same without the entropy bonus
  at::Tensor dlogprobs;    // [B, T] float32: d loss / d logprobs, 0 outside the mask
  at::Tensor dentropies;   // [B, T] float32: d loss / d entropies; undefined where there is no entropy bonus
  Tally metrics;           // by TRL's names
};

// `entropy_coef`: the coefficient of this step (options.entropy_coef, or what EntropyControl says). The bonus is the
// mean entropy of the tokens of the step that it acts on. Throws std::invalid_argument where tensors do not fit or one
// that the options need is missing. The options have passed check().
PolicyOutput policy_loss(const PolicyBatch& batch, const PolicyCounts& step, const PolicyOptions& options,
                         double entropy_coef);
inline PolicyOutput policy_loss(const PolicyBatch& batch, const PolicyCounts& step, const PolicyOptions& options) {
  return policy_loss(batch, step, options, options.entropy_coef);
}

// Adaptive entropy control (He 2025, Skywork-OR1), as TRL's use_adaptive_entropy. It is state of the run.
struct EntropyControl {
  double coef = 0;                     // starts at options.entropy_coef
  std::optional<double> last_entropy;  // mean of the step before, of the tokens that the bonus acts on

  // The coefficient of the next step: 0 while the entropy was above the target or is not known.
  double applied(const PolicyOptions& options) const;
  void observe(double mean_entropy, const PolicyOptions& options);
};

}  // namespace cairn::rl
