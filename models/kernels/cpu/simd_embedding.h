// Embedding rows over raw pointers; see models/kernels/embedding.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "models/kernels/cpu/pieces.h"

namespace cairn::kernels {

// out[n] = scale * weight[ids[n]]; ids are inside the table.
void simd_gather_rows(const float* weight, const int32_t* ids, size_t rows, size_t columns, float scale, float* out);
// to[ids[n]] += scale * from[n], n ascending: the columns are split among threads, never the rows.
void simd_scatter_add_rows(const float* from, const int32_t* ids, size_t rows, size_t columns, float scale, float* to);

}  // namespace cairn::kernels
