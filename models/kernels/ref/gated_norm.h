// Plain twins of kernels/gated_norm.h and kernels/delta_gates.h: ATen alone, any dtype and device, differentiable.
#pragma once

#include <ATen/ATen.h>

namespace cairn::kernels::ref {

// x [N, H, D], z [N, K, H / K, D] -> [N, H, D] in the dtype of x.
at::Tensor gated_norm(const at::Tensor& x, const at::Tensor& z, const at::Tensor& weight, double eps);

// x [N, H, D] times sigmoid(z), z [N, K, H / K, D], in the dtype of x.
at::Tensor sigmoid_gate(const at::Tensor& x, const at::Tensor& z);

// (g, beta), each [N, Hv], float32 at least.
std::pair<at::Tensor, at::Tensor> delta_gates(const at::Tensor& ba, const at::Tensor& A_log, const at::Tensor& dt_bias,
                                              int64_t key_heads);

}  // namespace cairn::kernels::ref
