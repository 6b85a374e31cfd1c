// Plain twin of kernels/embedding.h: ATen alone, any dtype and device, differentiable to any order.
#pragma once

#include <ATen/ATen.h>

namespace cairn::kernels::ref {

// weight [V, D], ids int [N] -> scale * weight[ids], [N, D].
at::Tensor embedding(const at::Tensor& weight, const at::Tensor& ids, double scale);

}  // namespace cairn::kernels::ref
