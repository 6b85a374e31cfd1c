// Token embedding as a step of the autograd graph, and dropout, whose masks are recomputed.
#pragma once

#include "models/layers/pass.h"

namespace cairn::models {

// weight [V, C], ids int32 [N] -> scale * weight[ids], [N, C]; the gradient is added to weight.grad in token order.
at::Tensor embed(const at::Tensor& weight, const at::Tensor& ids, double scale, const Pass& pass);

// x [N, C]; the identity where pass.dropout is 0. `site` names the place in the model (Pass::dropout_key).
at::Tensor dropout(const at::Tensor& x, int64_t site, const Pass& pass);

}  // namespace cairn::models
