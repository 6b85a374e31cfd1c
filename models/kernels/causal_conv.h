// Depthwise causal convolution with SiLU, the short memory in front of a linear attention:
//   y[n, c] = silu(sum over j of weight[c, taps - 1 - j] * x[n - j, c]), j < taps, rows of the same document alone.
// float32 on the CPU; 1 to 8 taps.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "models/kernels/cpu/simd_causal_conv.h"

namespace cairn::kernels {

struct ConvOptions {
  int64_t batch = 1;          // N = batch * length rows, sequences one after another
  at::Tensor segments;        // int32 [N] or undefined: nothing is seen across a change
  std::vector<ConvRun> runs;  // which columns of x become which of y; they cover y's columns once
};

// x [N, *] with a contiguous last dimension and any row stride, weight [W, taps] contiguous -> y [N, W]. The bits
// depend neither on the number of threads nor on other sequences or documents. Throw std::invalid_argument where
// shapes, strides or types do not fit.
at::Tensor causal_conv_forward(const at::Tensor& x, const at::Tensor& weight, const ConvOptions& options);

// dy [N, W] contiguous is given up. Writes dx at the columns that the runs name; adds to dweight [W, taps] unless that
// is undefined.
void causal_conv_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                          const ConvOptions& options, const at::Tensor& dx, const at::Tensor& dweight);

// Rows of one sequence that follow `history` [taps - 1, *], the rows of x before them (zeros at the start), which
// becomes the last taps - 1 rows. To the bit what causal_conv_forward gives.
at::Tensor causal_conv_decode(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& history,
                              const ConvOptions& options);

}  // namespace cairn::kernels
