// How much a token of the gated delta rule writes and what it forgets (Mamba-2's parametrisation, Dao & Gu 2024):
//   beta = sigmoid(b), g = -exp(A_log) softplus(a + dt_bias).
// float32 on the CPU; the bits depend neither on the number of threads nor on the width of vectors.
#pragma once

#include <ATen/ATen.h>

namespace cairn::kernels {

struct DeltaGatesOutput {
  at::Tensor g, beta;  // [N, Hv]
};

// ba [N, 2 Hv] with a contiguous last dimension and any row stride, grouped by key head: its Hv / Hk values of b, then
// of a. A_log, dt_bias [Hv]. Throw std::invalid_argument where shapes, strides or types do not fit.
DeltaGatesOutput delta_gates_forward(const at::Tensor& ba, const at::Tensor& A_log, const at::Tensor& dt_bias,
                                     int64_t key_heads);

// Writes dba, strided as ba may be; adds to dA_log and ddt_bias unless they are undefined.
void delta_gates_backward(const at::Tensor& dg, const at::Tensor& dbeta, const DeltaGatesOutput& forward,
                          const at::Tensor& ba, const at::Tensor& A_log, const at::Tensor& dt_bias, int64_t key_heads,
                          const at::Tensor& dba, const at::Tensor& dA_log, const at::Tensor& ddt_bias);

}  // namespace cairn::kernels
