// Plain twin of kernels/delta_rule.h: the definition, token by token. ATen alone, any dtype and device, differentiable
// to any order.
#pragma once

#include "models/kernels/delta_rule.h"

namespace cairn::kernels::ref {

// Shapes as delta_rule_forward; computes in float32 at least, returns [N, Hv * Dv] in the dtype of v. With `state`
// [Hv, Dk, Dv] (one sequence) it goes on from there, and the state after the last row is written to it.
at::Tensor delta_rule(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& g,
                      const at::Tensor& beta, const DeltaRuleOptions& options, const at::Tensor& state = {});

}  // namespace cairn::kernels::ref
