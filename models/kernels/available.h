// Which tensors the hand-written kernels take. Everything else goes through the plain twins in kernels/ref.
#pragma once

#include <ATen/ATen.h>

namespace cairn::kernels {

// True where the vectorised CPU kernels apply: float32 on the CPU. Layers fall back to kernels/ref otherwise.
inline bool available(const at::Tensor& x) { return x.is_cpu() && x.scalar_type() == at::kFloat; }

// cpu: the vectorised kernels. device: what tensors on a GPU take: hand-written kernels of the CUDA module where there
// is one (kernels/cuda/table.h), kernels/aten where that is leaner than the twins, the twins for the rest. twins: the
// plain twins alone.
enum class Way { cpu, device, twins };

}  // namespace cairn::kernels
