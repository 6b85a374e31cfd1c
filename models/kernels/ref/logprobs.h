// Plain twin of kernels/logprobs.h: ATen alone, any dtype and device, differentiable to any order. Holds all logits.
#pragma once

#include <ATen/core/Tensor.h>

#include "models/kernels/logprobs.h"

namespace cairn::kernels::ref {

// As kernels::linear_logprobs; logprobs and entropy carry their history. Float32 at least.
Logprobs linear_logprobs(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& bias,
                         const at::Tensor& targets, const LogprobsOptions& options);

}  // namespace cairn::kernels::ref
