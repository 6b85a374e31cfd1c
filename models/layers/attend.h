// Softmax attention of queries over keys and values that a layer has made, over all keys or over a chosen set:
// differentiable, by whichever kernels take the tensors.
#pragma once

#include "models/kernels/attention.h"
#include "models/layers/pass.h"

namespace cairn::models {

struct Attended {
  at::Tensor out;  // [N, H E]
  at::Tensor lse;  // [B, H, T] log of the sum of exp of the scores, without gradient; undefined where not asked for
};

// q [N, H, D], k [N, K, D], v [N, K, E]; K divides H. Where E and D differ the kernels of the CPU get the narrower side
// padded with zeros.
Attended attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const kernels::AttentionOptions& options,
                const Pass& pass, bool with_lse = false);

// The same over the keys `selected` int32 [N, S] of each query: positions in its sequence, ascending, -1 after the
// last.
Attended attend_selected(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& selected,
                         const kernels::AttentionOptions& options, const Pass& pass);

// q [n, H, D] of the newest rows against the `length` first rows of cache_k [capacity, K, D] and cache_v [capacity, K,
// E]
// -> [n, H E]; over `selected` int32 [n, S] where that is defined.
at::Tensor attend_rows(const at::Tensor& q, const at::Tensor& cache_k, const at::Tensor& cache_v,
                       const at::Tensor& selected, int64_t length, const kernels::AttentionOptions& options,
                       const Pass& pass);

// `rows` [n, ...] become the rows of `cached` [capacity, ...] that follow the sequence's first `length`. Throws
// std::invalid_argument where they do not fit.
void append_rows(const at::Tensor& cached, const SequenceCache& sequence, const at::Tensor& rows);

}  // namespace cairn::models
