// Depthwise causal convolution with SiLU over raw pointers; shapes and formulas as in models/kernels/causal_conv.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cairn::kernels {

// Columns [from, from + count) of x become columns [to, to + count) of y.
struct ConvRun {
  int64_t from = 0, to = 0, count = 0;
};

struct ConvCall {
  int64_t rows = 0, width = 0, taps = 0;
  const ConvRun* runs = nullptr;
  int64_t run_count = 0;
  const float* x = nullptr;  // row n at x + n * x_stride; rows before `first` may be read too (negative n)
  int64_t x_stride = 0;
  const float* weight = nullptr;    // [taps, width]: the last tap is the row itself
  const int32_t* before = nullptr;  // [rows] rows of the same document before this one, at most taps - 1
  const int32_t* after = nullptr;   // [rows] likewise after it; backward
};

void simd_conv_forward(const ConvCall& call, float* y);
// dy [rows, width] becomes the gradient of what SiLU was given; dx at x's columns, row stride dx_stride; dweight
// [taps, width] added to, or null. partial: piece_count(rows) * taps * width floats.
void simd_conv_backward(const ConvCall& call, float* dy, float* dx, int64_t dx_stride, float* dweight, float* partial);

constexpr int64_t kMaxTaps = 8;

}  // namespace cairn::kernels
