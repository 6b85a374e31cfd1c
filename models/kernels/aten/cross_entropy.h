// Cross-entropy straight from the hidden states through LibTorch's operators alone: what tensors on a GPU take. As
// kernels/cross_entropy.h it goes over chunks of rows and fills in the gradients on the way, so the logits of the whole
// batch are never held. Any device and any floating type; nothing in it waits for a GPU.
//
// Never run on a GPU so far; tests/models/aten_test.cpp holds it against the plain twin on the CPU.
#pragma once

#include <ATen/ATen.h>

#include "models/kernels/cross_entropy.h"

namespace cairn::kernels::aten {

struct CrossEntropySums {
  at::Tensor sums;     // float64 [3]: nll, z and correct of kernels::CrossEntropyOutput, on the device of `hidden`
  at::Tensor row_nll;  // [N] float32 (float64 where hidden is), 0 where not predicted
  at::Tensor dhidden;  // [N, D] in the type of hidden; undefined unless gradients were asked for
};

// hidden [N, D], weight [V, D] and bias [V] (or undefined) of one type and device: the products are taken in it, the
// rest in float32 at least. targets int32 [N], -1 = not predicted, best on the CPU; rows that are not predicted cost
// nothing. With `gradients` those of weight and bias are ADDED to dweight and dbias, which may have a type of their own
// (float32 beside bfloat16 products); undefined: frozen. Throws std::invalid_argument naming a target outside the
// vocabulary, or shapes that do not fit.
CrossEntropySums linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& bias,
                                      const at::Tensor& targets, const CrossEntropyOptions& options, bool gradients,
                                      const at::Tensor& dweight, const at::Tensor& dbias);

}  // namespace cairn::kernels::aten
