// Log-probabilities straight from the hidden states through LibTorch's operators alone: what tensors on a GPU take. In
// chunks of rows, forward and backward, as kernels/logprobs.h. Any device and any floating type.
//
// Never run on a GPU so far; tests/models/logprobs_test.cpp holds it against the plain twin on the CPU.
#pragma once

#include <ATen/core/Tensor.h>

#include "models/kernels/logprobs.h"

namespace cairn::kernels::aten {

// As kernels::linear_logprobs, in the dtype of hidden and float32 at least; results on the device of hidden.
Logprobs linear_logprobs(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& bias,
                         const at::Tensor& targets, const LogprobsOptions& options);

// As kernels::linear_logprobs_backward; dweight and dbias may have a type of their own.
at::Tensor linear_logprobs_backward(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& bias,
                                    const at::Tensor& targets, const LogprobsOptions& options,
                                    const at::Tensor& dlogprobs, const at::Tensor& dentropy, const at::Tensor& dweight,
                                    const at::Tensor& dbias);

}  // namespace cairn::kernels::aten
