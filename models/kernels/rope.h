// Rotary position embedding (Su et al. 2021), applied in place.
#pragma once

#include <ATen/ATen.h>

namespace cairn::kernels {

// x [N, H, D], last dimension contiguous, any row stride; positions int32 [N]; cos, sin [max_position, R/2] with R <= D even: the
// first R features of a head are rotated, the rest pass. interleaved: pairs (2i, 2i+1); otherwise (i, i + R/2).
// inverse: rotates by the negative angle, which is the backward pass. Scaling by an attention factor is folded into cos and sin;
// then the inverse applies the transpose (cos, -sin), which is the gradient, not the inverse matrix.
// Throws std::invalid_argument when a position lies outside the table.
void rope_(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& cos, const at::Tensor& sin, bool interleaved, bool inverse);

}  // namespace cairn::kernels
