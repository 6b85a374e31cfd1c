// Plain twin of kernels/causal_conv.h: ATen alone, any dtype and device, differentiable to any order.
#pragma once

#include "models/kernels/causal_conv.h"

namespace cairn::kernels::ref {

// Shapes as causal_conv_forward; computes in float32 at least and returns the dtype of x. With `history` (one sequence)
// its rows come before those of x, and it becomes the last rows.
at::Tensor causal_conv(const at::Tensor& x, const at::Tensor& weight, const ConvOptions& options,
                       const at::Tensor& history = {});

}  // namespace cairn::kernels::ref
