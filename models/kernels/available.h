// Which tensors the hand-written kernels take. Everything else goes through the plain twins in kernels/ref.
#pragma once

#include <ATen/ATen.h>

namespace cairn::kernels {

// True where the vectorised CPU kernels apply: float32 on the CPU. Layers fall back to kernels/ref otherwise.
inline bool available(const at::Tensor& x) { return x.is_cpu() && x.scalar_type() == at::kFloat; }

}  // namespace cairn::kernels
