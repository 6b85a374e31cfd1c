// y = x W^T + b and its gradients, for training shapes (MKL) and for the few rows of decoding (own kernel at memory
// speed).
#pragma once

#include <ATen/ATen.h>

namespace cairn::kernels {

// x [N, in], weight [out, in], bias [out] or undefined -> [N, out].
// N <= 8 goes to linear_decode; above, rows are padded to a multiple of 8 and the product is MKL's. The bits of a row
// depend on its values and on which of the two it is. NOTE: thread counts change no bits under MKL_CBWR=...,STRICT
// alone (a small weight gradient over many rows is otherwise split over the threads); trainer/environment.h sets it.
at::Tensor linear_forward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);

// Gradient of x: dy [N, out] · weight.
at::Tensor linear_backward_input(const at::Tensor& dy, const at::Tensor& weight);

// dweight += dy^T x inside the product (beta = 1 rounds otherwise than adding afterwards: this one is kept everywhere);
// dbias += column sums of dy over fixed pieces.
void linear_backward_weight_(const at::Tensor& dweight, const at::Tensor& dbias, const at::Tensor& dy,
                             const at::Tensor& x);

// Few rows (1 to 8): streams the weight once; a row's bits depend neither on the other rows nor on the threads.
at::Tensor linear_decode(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);

}  // namespace cairn::kernels
