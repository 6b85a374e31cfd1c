// Rotary position embedding over raw pointers; see models/kernels/rope.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "models/kernels/cpu/pieces.h"

namespace cairn::kernels {

struct Rope {
  size_t rows = 0, heads = 0, half = 0;  // half = R / 2
  float* x = nullptr;
  ptrdiff_t row_stride = 0, head_stride = 0;
  const int32_t* positions = nullptr;          // [rows], inside the table
  const float *cos = nullptr, *sin = nullptr;  // [positions, half]
  bool interleaved = false, inverse = false;
};

void simd_rope(const Rope& job);

}  // namespace cairn::kernels
