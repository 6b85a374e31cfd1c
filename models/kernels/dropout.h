// Dropout whose mask is a pure function of (key, global row, column): recomputed in the backward pass, never stored.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace cairn::kernels {

// Names one use of dropout in one step: seed and stream (hash of step and site). The row index is global in the batch
// of the step, so micro-batches, lanes and ranks draw the same mask.
struct DropoutKey {
  uint64_t seed = 0;
  uint64_t stream = 0;
  int64_t first_row = 0;
};

// An element is dropped where its 32-bit word lies below this.
inline uint32_t dropout_threshold(double p) {
  return static_cast<uint32_t>(std::clamp<int64_t>(std::llround(p * 4294967296.0), 0, 4294967295));
}

// x [N, D] contiguous, 0 <= p < 1: element (n, d) is kept with probability 1 - p and scaled by 1 / (1 - p). The same
// function is its own backward pass. Element (n, d) belongs to word (d / 16) % 4 of block (first_row + n) * 2^32 + (d /
// 64) * 16 + d % 16 of Philox{seed, Purpose::dropout, stream}: sixteen neighbouring blocks give 64 columns without a
// shuffle. Append only: recorded runs depend on it.
at::Tensor dropout(const at::Tensor& x, double p, const DropoutKey& key);

}  // namespace cairn::kernels
