#include "models/kernels/ref/norm.h"

#include "models/kernels/ref/wide.h"

namespace cairn::kernels::ref {

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, double offset) {
  const auto s = wide(x);
  const auto rstd = at::rsqrt(s.square().mean(-1, true) + eps);  // [..., 1]
  return (s * rstd * (weight.to(s.scalar_type()) + offset)).to(x.scalar_type());
}

at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  const auto s = wide(x);
  const auto centred = s - s.mean(-1, true);
  auto y = centred * at::rsqrt(centred.square().mean(-1, true) + eps) * weight.to(s.scalar_type());
  if (bias.defined()) y = y + bias.to(s.scalar_type());
  return y.to(x.scalar_type());
}

}  // namespace cairn::kernels::ref
