// Plain twin of kernels/sparse_attention.h: ATen alone, any dtype and device, differentiable to any order. Holds T x T
// scores, masked where a key is not listed.
#pragma once

#include <ATen/ATen.h>

#include "models/kernels/sparse_attention.h"

namespace cairn::kernels::ref {

// int32 [N, S] of positions -> true where key s is listed for query t, [batch, length, keys].
at::Tensor selected_mask(const at::Tensor& selected, int64_t batch, int64_t keys);

// [N, H * E] in the dtype of q, computed in float32 at least.
at::Tensor sparse_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& selected,
                            const AttentionOptions& options);
// [batch, H, length, length]: zero where a key is not listed.
at::Tensor sparse_attention_probabilities(const at::Tensor& q, const at::Tensor& k, const at::Tensor& selected,
                                          const AttentionOptions& options);
// [batch, H, length]
at::Tensor sparse_attention_lse(const at::Tensor& q, const at::Tensor& k, const at::Tensor& selected,
                                const AttentionOptions& options);
// Twin of kernels::sparse_attention_decode.
at::Tensor sparse_attention_decode(const at::Tensor& q, const at::Tensor& cache_k, const at::Tensor& cache_v,
                                   const at::Tensor& selected, int64_t length, const AttentionOptions& options);

}  // namespace cairn::kernels::ref
