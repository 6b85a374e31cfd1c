// Plain twin of kernels/rope.h, out of place: ATen alone, any dtype and device, differentiable to any order.
#pragma once

#include <ATen/ATen.h>

namespace cairn::kernels::ref {

// x [N, H, D], positions int [N], cos, sin [max_position, R/2]. Computes in float32 at least; returns the dtype of x.
at::Tensor rope(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& cos, const at::Tensor& sin,
                bool interleaved);

}  // namespace cairn::kernels::ref
