// Log-probabilities of given tokens straight from the hidden states, and back: what losses of fine-tuning are made of.
// In chunks of rows, so that the logits of the whole batch are never held; the backward pass computes them again.
#pragma once

#include <ATen/core/Tensor.h>

namespace cairn::kernels {

struct LogprobsOptions {
  double softcap = 0.0;      // logits -> softcap * tanh(logits / softcap) first; 0: off (Gemma 2)
  double temperature = 1.0;  // log-probabilities are of logits / temperature
  bool entropy = false;
  int64_t chunk_rows = 0;  // a multiple of 8; 0: chosen from V alone
};

// float32 [N] each, 0 where not predicted.
struct Logprobs {
  at::Tensor logprobs;  // log p(targets[n]), nats
  at::Tensor entropy;   // of p, nats; undefined unless asked for
  at::Tensor lse;       // log of the sum of exp(logits / temperature), which the backward pass wants
};

// hidden float32 [N, D] contiguous, weight [V, D], bias [V] or undefined, targets int32 [N] with -1 = not predicted.
Logprobs linear_logprobs(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& bias,
                         const at::Tensor& targets, const LogprobsOptions& options);

// The gradient of hidden [N, D] for those of logprobs and entropy, float32 [N] (dentropy may be undefined; it asks for
// options.entropy in the forward pass); those of weight and bias are ADDED to dweight [V, D] and dbias [V]; undefined:
// frozen, skipped. `forward`: what linear_logprobs gave. Rows whose gradients are zero cost nothing.
at::Tensor linear_logprobs_backward(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& bias,
                                    const at::Tensor& targets, const LogprobsOptions& options, const Logprobs& forward,
                                    const at::Tensor& dlogprobs, const at::Tensor& dentropy, const at::Tensor& dweight,
                                    const at::Tensor& dbias);

}  // namespace cairn::kernels
