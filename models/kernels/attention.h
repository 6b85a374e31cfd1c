// Causal softmax attention in tiles with an online softmax (FlashAttention-2, Dao 2023): T x T scores are never held.
#pragma once

#include <ATen/ATen.h>

#include "models/kernels/dropout.h"

namespace cairn::kernels {

struct AttentionOptions {
  int64_t batch = 1;     // N = batch * length rows, sequences one after another
  double scale = 1.0;    // scores are multiplied by this
  int64_t window = 0;    // > 0: position t sees s with t - window < s <= t (Mistral's convention)
  double softcap = 0.0;  // scores -> softcap * tanh(scores / softcap)
  double dropout = 0.0;  // on the probabilities
  DropoutKey dropout_key;
  at::Tensor
      segments;  // int32 [N] or undefined: attention stays inside rows of equal segment (non-decreasing in a sequence)
  at::Tensor sinks;  // float32 [H] or undefined: one more score a head in every softmax, whose value is zero (gpt-oss)
};

struct AttentionOutput {
  at::Tensor out;  // [N, H * D] contiguous
  at::Tensor lse;  // [batch, H, length] log of the sum of exp of the scores
};

// q [N, H, D], k [N, K, D], v [N, K, D]: last dimension contiguous, any row stride (slices of one fused product); K
// divides H: query head h reads kv head h / (H / K). The bits depend neither on the number of threads nor on the other
// sequences of the batch.
AttentionOutput attention_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  const AttentionOptions& options);

// Throw std::invalid_argument where shapes, strides or types do not fit.

// Writes (not adds) dq, dk, dv: preallocated, same shapes, last dimension contiguous, any row stride.
void attention_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const at::Tensor& out, const at::Tensor& lse, const AttentionOptions& options,
                        const at::Tensor& dq, const at::Tensor& dk, const at::Tensor& dv);

// Adds the gradient of options.sinks to dsinks [H]: minus the sum over the rows of (probability of the sink) *
// (dout . out).
void attention_backward_sinks_(const at::Tensor& dsinks, const at::Tensor& dout, const at::Tensor& out,
                               const at::Tensor& lse, const AttentionOptions& options);

// Keys are taken in tiles of 64 from the start of their sequence, so decoding gives a row the same bits as
// attention_forward. Decoding: q [N, H, D] of N new rows that end a context of `length` cached rows (the new rows' keys
// and values are already in the cache): row i sees cached rows [0, length - N + i]. cache_k, cache_v [capacity, K, D]
// contiguous in the last dimension. Returns [N, H * D].
at::Tensor attention_decode(const at::Tensor& q, const at::Tensor& cache_k, const at::Tensor& cache_v, int64_t length,
                            const AttentionOptions& options);

}  // namespace cairn::kernels
