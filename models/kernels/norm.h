// RMSNorm (Zhang & Sennrich 2019) and LayerNorm (Ba et al. 2016), each with the residual addition before it fused in.
// float32 on the CPU, and RMSNorm of CUDA tensors where the CUDA module is open. Reductions run over 16 virtual lanes, weight gradients over fixed pieces of rows: the bits depend
// neither on the number of threads nor on the width of the machine's vectors.
#pragma once

#include <ATen/ATen.h>

namespace cairn::kernels {

struct NormOutput {
  at::Tensor sum;   // x + residual, [..., D]; x itself where there is no residual
  at::Tensor y;     // normalised, [..., D], contiguous
  at::Tensor mean;  // [rows]; LayerNorm only
  at::Tensor rstd;  // [rows]
};

// y = s * rstd * (weight + offset), s = x + residual, rstd = 1 / sqrt(mean(s^2) + eps).
// x [..., D] with a contiguous last dimension (a strided [N, H, D] view of a fused product is taken as it is when there
// is no residual); residual like x, contiguous, or undefined; weight [D]. offset is 1 for Gemma's zero-centred weights,
// else 0.
NormOutput rms_norm_forward(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight, double eps,
                            double offset);

// Gradient of the sum: dsum + (dy through the norm). dsum (the gradient that reaches the sum by the residual path) may
// be undefined. Adds the weight's gradient to dweight [D] unless that is undefined. dy and sum may be strided as x may.
// Written to `out` where that is defined (strided likewise; it may be dy itself), else to a new contiguous tensor;
// returned.
at::Tensor rms_norm_backward(const at::Tensor& dy, const at::Tensor& dsum, const at::Tensor& sum,
                             const at::Tensor& weight, const at::Tensor& rstd, double offset, const at::Tensor& dweight,
                             const at::Tensor& out = {});

// y = (s - mean) * rstd * weight + bias; bias may be undefined.
NormOutput layer_norm_forward(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                              const at::Tensor& bias, double eps);
at::Tensor layer_norm_backward(const at::Tensor& dy, const at::Tensor& dsum, const at::Tensor& sum,
                               const at::Tensor& weight, const at::Tensor& mean, const at::Tensor& rstd,
                               const at::Tensor& dweight, const at::Tensor& dbias, const at::Tensor& out = {});

}  // namespace cairn::kernels
