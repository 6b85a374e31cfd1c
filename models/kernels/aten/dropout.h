// The masks of kernels/dropout.h and of attention computed on the device that uses them: Philox in 64-bit integer
// operators. The same elements are dropped as on the CPU, to the bit.
//
// Never run on a GPU so far; tests/models/aten_test.cpp compares every element on the CPU.
#pragma once

#include <ATen/ATen.h>

#include "models/kernels/dropout.h"

namespace cairn::kernels::aten {

// As ref::dropout_mask and ref::attention_dropout_mask: float32, 1 / (1 - p) where kept, else 0.
at::Tensor dropout_mask(int64_t rows, int64_t columns, double p, const DropoutKey& key, at::Device device);
at::Tensor attention_dropout_mask(int64_t batch, int64_t heads, int64_t length, double p, const DropoutKey& key,
                                  at::Device device);

}  // namespace cairn::kernels::aten
