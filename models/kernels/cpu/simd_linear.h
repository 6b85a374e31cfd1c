// Products of a few rows with a weight matrix at the speed of memory, over raw pointers.
#pragma once

#include <cstdint>

namespace cairn::kernels {

// y[n, o] = x[n] . weight[o] + bias[o] for o in [begin, end), n in [0, rows), rows 1 to 8. x [rows, in] contiguous,
// weight rows at a stride, bias null or [out], y rows at y_stride. Every dot product has its own 16 sums in ascending
// order: its bits depend on x[n] and weight[o] alone.
void linear_few_rows(const float* x, int64_t rows, int64_t in, const float* weight, int64_t weight_stride,
                     const float* bias, float* y, int64_t y_stride, int64_t begin, int64_t end);

// sum[c] += columns [begin, end) of dy [rows, *] added up: pieces of 64 rows in order, rows of a piece in order.
void linear_column_sums(const float* dy, int64_t rows, int64_t stride, float* sum, int64_t begin, int64_t end);

}  // namespace cairn::kernels
