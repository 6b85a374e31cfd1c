#include "models/kernels/ref/linear.h"

namespace cairn::kernels::ref {

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return bias.defined() ? at::addmm(bias, x, weight.t()) : at::mm(x, weight.t());
}

}  // namespace cairn::kernels::ref
