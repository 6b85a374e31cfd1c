// Plain twin of kernels/index_topk.h: ATen alone, any dtype and device. Holds T x T scores.
#pragma once

#include <ATen/ATen.h>

#include "models/kernels/index_topk.h"

namespace cairn::kernels::ref {

// I [batch, length, length] in float32 at least (float64 stays float64), every pair, candidate or not. Differentiable.
at::Tensor index_scores(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const IndexOptions& options);

// True where key s is a candidate of query t, [batch, length, length].
at::Tensor index_candidates(int64_t rows, const IndexOptions& options, at::Device device);

// Twins of kernels::index_topk and index_topk_decode.
at::Tensor index_topk(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const IndexOptions& options);
at::Tensor index_topk_decode(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, int64_t length,
                             const IndexOptions& options);

}  // namespace cairn::kernels::ref
