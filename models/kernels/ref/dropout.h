// Plain twin of kernels/dropout.h: the same mask, any dtype and device, differentiable to any order.
#pragma once

#include <ATen/ATen.h>

#include "models/kernels/dropout.h"

namespace cairn::kernels::ref {

// Factors: 1 / (1 - p) where kept, 0 where dropped; float32 [rows, columns] on the CPU. The layout of the draws is in
// kernels/dropout.h.
at::Tensor dropout_mask(int64_t rows, int64_t columns, double p, const DropoutKey& key);

at::Tensor dropout(const at::Tensor& x, double p, const DropoutKey& key);

}  // namespace cairn::kernels::ref
