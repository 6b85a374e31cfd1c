// Rotary position embedding of a part of every head, out of place and differentiable.
#pragma once

#include "models/layers/rope.h"

namespace cairn::models {

struct Rotation {
  at::Tensor positions;      // int32 [N]
  at::Tensor cos, sin;       // float32 [max_position, R/2]
  bool interleaved = false;  // pairs (2i, 2i+1) instead of (i, i + R/2)
};

// x [N, H, D] with the features [first, first + R) of every head rotated; x stays as it is.
at::Tensor rotated(const at::Tensor& x, int64_t first, const Rotation& rotation, const Pass& pass);

}  // namespace cairn::models
