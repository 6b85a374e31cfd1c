#include "models/kernels/ref/gated_norm.h"

#include "models/kernels/ref/norm.h"
#include "models/kernels/ref/wide.h"

namespace cairn::kernels::ref {

at::Tensor gated_norm(const at::Tensor& x, const at::Tensor& z, const at::Tensor& weight, double eps) {
  const at::Tensor s = wide(x), gate = wide(z).reshape(x.sizes()).to(s.scalar_type());
  return (rms_norm(s, weight, eps, 0) * at::silu(gate)).to(x.scalar_type());
}

at::Tensor sigmoid_gate(const at::Tensor& x, const at::Tensor& z) {
  const at::Tensor s = wide(x);
  return (s * wide(z).reshape(x.sizes()).to(s.scalar_type()).sigmoid()).to(x.scalar_type());
}

std::pair<at::Tensor, at::Tensor> delta_gates(const at::Tensor& ba, const at::Tensor& A_log, const at::Tensor& dt_bias,
                                              int64_t key_heads) {
  const int64_t N = ba.size(0), heads = A_log.size(0);
  const at::Tensor grouped = wide(ba).reshape({N, key_heads, 2, heads / key_heads});
  const at::Tensor b = grouped.select(2, 0).reshape({N, heads}), a = grouped.select(2, 1).reshape({N, heads});
  const at::ScalarType type = grouped.scalar_type();
  // The default threshold of softplus, 20, returns x itself beyond it: in float64 that is an error of 2e-9.
  const at::Tensor step = at::softplus(a + dt_bias.to(type), 1, 100);
  return {-A_log.to(type).exp() * step, b.sigmoid()};
}

}  // namespace cairn::kernels::ref
