// Dropout whose mask is a pure function of (key, global row, column): recomputed in the backward pass, never stored.
#pragma once

#include <ATen/ATen.h>

namespace cairn::kernels {

// Names one use of dropout in one step: seed and stream (hash of step and site). The row index is global in the batch of the step,
// so micro-batches, lanes and ranks draw the same mask.
struct DropoutKey {
  uint64_t seed = 0;
  uint64_t stream = 0;
  int64_t first_row = 0;
};

// x [N, D]: element (n, d) is kept with probability 1 - p and scaled by 1 / (1 - p). The same function is its own backward pass.
at::Tensor dropout(const at::Tensor& x, double p, const DropoutKey& key);

}  // namespace cairn::kernels
