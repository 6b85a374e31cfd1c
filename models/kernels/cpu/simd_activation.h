// Activations over raw pointers; see models/kernels/activation.h, whose enumeration `kind` numbers.
#pragma once

#include <cstddef>

#include "models/kernels/cpu/pieces.h"

namespace cairn::kernels {

struct Gated {
  size_t rows = 0, columns = 0;    // columns = F
  const float* gate_up = nullptr;  // gate in columns [0, F), up in [F, 2F)
  ptrdiff_t gate_up_stride = 0;
  const float* dh = nullptr;  // [rows, F]; null: the forward pass
  float* out = nullptr;  // [rows, F] contiguous, or in the backward pass the gradient of gate_up (maybe in its place)
  ptrdiff_t out_stride = 0;
  float* h = nullptr;  // backward: where act(gate) * up goes once more, or null; may be dh
};

void simd_gated(const Gated& job, int kind);
// y = act(x), or dy * act'(x) where dy is given; y may be x or dy.
void simd_activation(const float* x, const float* dy, float* y, size_t n, int kind);

}  // namespace cairn::kernels
