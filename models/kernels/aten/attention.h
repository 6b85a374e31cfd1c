// Attention through LibTorch's scaled_dot_product_attention, which never holds T x T scores of a head: what tensors on
// a GPU take. Differentiable once.
//
// Never run on a GPU so far; tests/models/aten_test.cpp holds it against the plain twin on the CPU.
#pragma once

#include <ATen/ATen.h>

#include "models/kernels/attention.h"

namespace cairn::kernels::aten {

// As ref::attention: q [N, H, D], k [N, K, D], v [N, K, D] -> [N, H * D] in the type of q. Operands are rounded to
// `type` first (bfloat16 for bf16-mixed). Windows and segments become one mask [batch or 1, 1, T, T]; soft-capping and
// dropout, which LibTorch's operator does not have as they are defined here, go to the plain twin, scores and all.
at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionOptions& options,
                     at::ScalarType type);

}  // namespace cairn::kernels::aten
