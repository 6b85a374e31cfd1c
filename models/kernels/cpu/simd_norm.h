// RMSNorm and LayerNorm over raw pointers; shapes and formulas as in models/kernels/norm.h.
#pragma once

#include <cstddef>

#include "models/kernels/cpu/pieces.h"

namespace cairn::kernels {

struct NormForward {
  size_t rows = 0, columns = 0;
  StridedRows<const float> x;
  const float* residual = nullptr;  // [rows, columns] or null
  const float* weight = nullptr;    // [columns]
  const float* bias = nullptr;      // [columns] or null
  float eps = 0, offset = 0;
  bool centre = false;    // LayerNorm
  float* sum = nullptr;   // [rows, columns], where residual is given
  float* y = nullptr;     // [rows, columns]
  float* mean = nullptr;  // [rows], where centre
  float* rstd = nullptr;  // [rows]
};

struct NormBackward {
  size_t rows = 0, columns = 0;
  StridedRows<const float> dy, sum;
  const float* dsum = nullptr;  // [rows, columns] or null
  const float* weight = nullptr;
  const float* mean = nullptr;  // given: LayerNorm
  const float* rstd = nullptr;
  float offset = 0;
  StridedRows<float> out;    // may be dy itself
  float* dweight = nullptr;  // added to; or null
  float* dbias = nullptr;    // added to; or null
  float* partial = nullptr;  // workspace: piece_count(rows) * columns for each of dweight and dbias that is asked for
};

void simd_norm_forward(const NormForward& job);
void simd_norm_backward(const NormBackward& job);

// to[c] += sum over rows of from[r][c], rows in ascending order; from [rows, columns].
void simd_add_rows(const float* from, size_t rows, size_t columns, float* to);

}  // namespace cairn::kernels
