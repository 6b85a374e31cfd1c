// Plain ATen twins of optim/kernels/passes.h: the oracle of the vectorised passes, and the fallback for tensors that
// are not on the CPU. Parameters of any floating type (computed in float32), gradients and state float32.
#pragma once

#include <ATen/ATen.h>

#include "optim/kernels/passes.h"

namespace cairn::optim::kernels::ref {

void adamw(const at::Tensor& p, const at::Tensor& g, const at::Tensor& m, const at::Tensor& v, double decay,
           const AdamwScalars& s);
void sgd(const at::Tensor& p, const at::Tensor& g, const at::Tensor& m, double decay, const SgdScalars& s);
// Returns the update's direction before orthogonalisation.
at::Tensor muon_momentum(const at::Tensor& g, const at::Tensor& m, double grad_scale, double momentum, bool nesterov);
void muon_apply(const at::Tensor& p, const at::Tensor& o, double decay, double lr);
void ema(const at::Tensor& e, const at::Tensor& p, double one_minus_decay);
// flat: contiguous float32 [n]; the sum of squares of every `piece` elements begun, float64 [ceil(n / piece)]. The
// order of the additions is ATen's: the same on the same device, another than that of kernels::squared_norm.
at::Tensor squared_norm_pieces(const at::Tensor& flat, int64_t piece);

}  // namespace cairn::optim::kernels::ref
