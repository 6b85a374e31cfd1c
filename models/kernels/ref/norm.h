// Plain twins of kernels/norm.h: ATen alone, any dtype and device, differentiable to any order. The residual addition
// is the caller's.
#pragma once

#include <ATen/ATen.h>

namespace cairn::kernels::ref {

// Computes in float32 at least (float64 stays float64) and returns the dtype of x. x [..., D], weight [D].
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, double offset);
// bias may be undefined.
at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps);

}  // namespace cairn::kernels::ref
