// Plain twin of kernels/cross_entropy.h: ATen alone, any dtype and device, differentiable to any order. Holds all
// logits.
#pragma once

#include <ATen/ATen.h>

#include "models/kernels/cross_entropy.h"

namespace cairn::kernels::ref {

struct CrossEntropyTwin {
  at::Tensor loss;  // scalar: scale * (sum of nll + z_loss * sum of log^2 Z), differentiable
  double nll = 0;   // the rest as in kernels::CrossEntropyOutput
  double z = 0;
  int64_t correct = 0;
  at::Tensor row_nll;  // [N] float32 (float64 where hidden is), without history
};

// hidden [N, D], weight [V, D], bias [V] or undefined, targets int [N], -1 = not predicted. The product is taken in the
// dtype of hidden, the rest in float32 at least.
CrossEntropyTwin linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& bias,
                                      const at::Tensor& targets, const CrossEntropyOptions& options);

}  // namespace cairn::kernels::ref
