// Plain twin of kernels/linear.h: ATen alone, any dtype and device, differentiable to any order.
#pragma once

#include <ATen/ATen.h>

namespace cairn::kernels::ref {

// x [N, in], weight [out, in], bias [out] or undefined -> [N, out], in the dtype of x. bfloat16 products accumulate in
// float32.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);

}  // namespace cairn::kernels::ref
