// Gates on what heads give out: RMSNorm times SiLU (Gated DeltaNet, Yang et al. 2024), or a plain sigmoid (gated
// attention, Qiu et al. 2025).
// float32 on the CPU; the bits depend neither on the number of threads nor on the width of vectors.
#pragma once

#include <ATen/ATen.h>

namespace cairn::kernels {

struct GatedNormOutput {
  at::Tensor y;     // [N, H, D] contiguous
  at::Tensor rstd;  // [N * H]
};

// y = weight * x / sqrt(mean(x^2) + eps) * silu(z). NOTE: the weight is not stored around zero, whatever the family's
// other norms do. x [N, H, D] contiguous; z [N, K, H / K, D]: last two dimensions one after another, the others at any
// stride (slices of a product that is grouped by key head); weight [D]. Throw std::invalid_argument where shapes,
// strides or types do not fit.
GatedNormOutput gated_norm_forward(const at::Tensor& x, const at::Tensor& z, const at::Tensor& weight, double eps);

// dy, x [N, H, D] contiguous. Writes dz, strided as z may be; adds to dweight [D] unless that is undefined; returns dx.
at::Tensor gated_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& z, const at::Tensor& weight,
                               const at::Tensor& rstd, const at::Tensor& dz, const at::Tensor& dweight);

// y = x * sigmoid(z). x [N, H, D] contiguous, z as above.
at::Tensor sigmoid_gate_forward(const at::Tensor& x, const at::Tensor& z);
// Writes dz, strided as z may be; returns dx.
at::Tensor sigmoid_gate_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& z, const at::Tensor& dz);

}  // namespace cairn::kernels
