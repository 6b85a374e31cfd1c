// Rows of a table, and the ordered sum back into it.
#pragma once

#include <ATen/ATen.h>

namespace cairn::kernels {

// weight [V, D], ids int32 [N] -> [N, D], times `scale` (Gemma multiplies by sqrt(D)). Throws std::invalid_argument naming an id outside [0, V).
at::Tensor embedding_forward(const at::Tensor& weight, const at::Tensor& ids, double scale);
// dweight[ids[n]] += scale * dy[n], n in ascending order whatever the threads do.
void embedding_backward_(const at::Tensor& dweight, const at::Tensor& dy, const at::Tensor& ids, double scale);

}  // namespace cairn::kernels
