// Plain twins of kernels/activation.h: ATen alone, any dtype and device, differentiable to any order.
#pragma once

#include <ATen/ATen.h>

#include "models/kernels/activation.h"

namespace cairn::kernels::ref {

// Computes in float32 at least; returns the dtype of x.
at::Tensor activation(const at::Tensor& x, Activation kind);
// gate_up [N, 2F] -> act(gate) * up, [N, F].
at::Tensor gated(const at::Tensor& gate_up, Activation kind);

}  // namespace cairn::kernels::ref
