// Dropout over raw pointers; see models/kernels/dropout.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "models/kernels/cpu/pieces.h"

namespace cairn::kernels {

struct Dropout {
  size_t rows = 0, columns = 0;
  const float* x = nullptr;  // [rows, columns]
  float* y = nullptr;        // [rows, columns], may be x
  uint64_t seed = 0, stream = 0, first_row = 0;
  uint32_t threshold = 0;  // dropped where the word lies below
  float kept = 1;          // factor of what is kept
};

void simd_dropout(const Dropout& job);

}  // namespace cairn::kernels
