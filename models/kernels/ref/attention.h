// Plain twin of kernels/attention.h: ATen alone, any dtype and device, differentiable to any order. Holds T x T scores.
#pragma once

#include <ATen/ATen.h>

#include "models/kernels/attention.h"

namespace cairn::kernels::ref {

// q [N, H, D], k [N, K, D], v [N, K, D] -> [N, H * D] in the dtype of q. Computes in float32 at least; float64 stays
// float64. Masks, soft-capping and dropout are those of the fast kernel: the same elements are dropped.
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionOptions& options);

// Twin of kernels::attention_decode.
at::Tensor attention_decode(const at::Tensor& q, const at::Tensor& cache_k, const at::Tensor& cache_v, int64_t length,
                            const AttentionOptions& options);

// The probabilities before dropout, [batch, H, length, length], in the dtype that attention() computes in.
at::Tensor attention_probabilities(const at::Tensor& q, const at::Tensor& k, const AttentionOptions& options);

// log of the sum of exp of the scores, [batch, H, length], in the dtype that attention() computes in.
at::Tensor attention_lse(const at::Tensor& q, const at::Tensor& k, const AttentionOptions& options);

// Factors on the probabilities: 1 / (1 - p) where kept, 0 where dropped; float32 [batch, heads, length, length] on the
// CPU. Word (s / 16) % 4 of Philox block (row * heads + head) * 2^20 + (s / 64) * 16 + s % 16 decides about key
// position s (in its sequence) of global row `row`: kept where word >= p * 2^32. So 64 keys are 16 neighbouring blocks.
at::Tensor attention_dropout_mask(int64_t batch, int64_t heads, int64_t length, double p, const DropoutKey& key);

}  // namespace cairn::kernels::ref
