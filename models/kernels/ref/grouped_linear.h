// Plain twins of kernels/grouped_linear.h: ATen alone, any dtype and device, differentiable to any order. Without
// atomics on a GPU: rows are repeated, sorted, sorted back and added up, never scattered.
#pragma once

#include <ATen/ATen.h>

#include "models/kernels/grouped_linear.h"

namespace cairn::kernels::ref {

// x [N, C], experts int32 [N, k], weights [N, k] -> [N, C]; products in the dtype of x. kept: bool [N, k] or undefined:
// pairs that count.
at::Tensor experts(const at::Tensor& x, const at::Tensor& experts, const at::Tensor& weights, const at::Tensor& kept,
                   const ExpertWeights& w, const ExpertGate& gate);

// Which pairs have room: of each sequence of N / sequences tokens an expert keeps the first `capacity`. bool [N, k].
at::Tensor within_capacity(const at::Tensor& experts, int64_t num_experts, int64_t capacity, int64_t sequences);

// Twin of grouped_linear_forward over the rows of `rows`; filling rows are zero.
at::Tensor grouped_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                          const ExpertRows& rows);

}  // namespace cairn::kernels::ref
