// Plain twin of kernels/router.h: ATen alone, any device; weights, scores and lse are differentiable to any order.
#pragma once

#include <ATen/ATen.h>

#include "models/kernels/router.h"

namespace cairn::kernels::ref {

// logits [N, E] of float32 or float64.
Routing route(const at::Tensor& logits, const at::Tensor& bias, const RouterOptions& options);

// The auxiliary losses whose gradients kernels::route_backward adds, as a differentiable scalar: sum of balance *
// normalised scores + z * sum of lse^2; undefined where there are none.
at::Tensor router_aux_loss(const Routing& routing, const RouterOptions& options, const RouterAux& aux);

}  // namespace cairn::kernels::ref
