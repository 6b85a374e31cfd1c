// Softmax attention of every query over the keys that are listed for it (index_topk): work and memory grow with T * k.
#pragma once

#include <ATen/ATen.h>

#include "models/kernels/attention.h"

namespace cairn::kernels {

// q [N, H, D], k [N, K, D], v [N, K, E]: float32, contiguous heads, any row stride; K divides H (K = 1: latent
// attention in absorbed form). selected int32 [N, S]: ascending positions in the sequence, none after the query's own,
// -1 after the last (none in a row: its output is 0, its lse -inf). Of the options batch and scale count; the lists say
// already what segments would; window, softcap and dropout are refused. out is [N, H * E]. The bits depend neither on
// the number of threads nor on the other sequences of the batch, nor on S.
AttentionOutput sparse_attention_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                         const at::Tensor& selected, const AttentionOptions& options);

// Writes (not adds) dq, dk, dv: preallocated, same shapes, contiguous heads, any row stride. Keys that no query chose
// get zeros.
void sparse_attention_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                               const at::Tensor& out, const at::Tensor& lse, const at::Tensor& selected,
                               const AttentionOptions& options, const at::Tensor& dq, const at::Tensor& dk,
                               const at::Tensor& dv);

// Decoding: q [n, H, D] of the n newest rows that end a context of `length` cached rows; selected int32 [n, S] as
// index_topk_decode gives them. cache_k [capacity, K, D], cache_v [capacity, K, E]. Returns [n, H * E] with the bits
// that sparse_attention_forward gives these rows.
at::Tensor sparse_attention_decode(const at::Tensor& q, const at::Tensor& cache_k, const at::Tensor& cache_v,
                                   const at::Tensor& selected, int64_t length, const AttentionOptions& options);

// All of these throw std::invalid_argument where shapes, strides, types or positions do not fit.

}  // namespace cairn::kernels
