#include "models/kernels/linear.h"

#include "models/kernels/ref/linear.h"

namespace cairn::kernels {
namespace {

// MKL's few-row products depend on the thread count and on the other rows unless the rows are a multiple of 8.
constexpr int64_t kRowMultiple = 8;

// x with zero rows up to the next multiple of 8.
at::Tensor padded(const at::Tensor& x) {
  const int64_t rows = x.size(0), full = (rows + kRowMultiple - 1) / kRowMultiple * kRowMultiple;
  if (rows == full) return x;
  auto y = at::empty({full, x.size(1)}, x.options());
  y.narrow(0, 0, rows).copy_(x);
  y.narrow(0, rows, full - rows).zero_();
  return y;
}

}  // namespace

at::Tensor linear_forward(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return ref::linear(padded(x), weight, bias).narrow(0, 0, x.size(0));
}

at::Tensor linear_backward_input(const at::Tensor& dy, const at::Tensor& weight) {
  return at::mm(padded(dy), weight).narrow(0, 0, dy.size(0));
}

void linear_backward_weight_(const at::Tensor& dweight, const at::Tensor& dbias, const at::Tensor& dy,
                             const at::Tensor& x) {
  if (dweight.defined()) dweight.addmm_(dy.t(), x);
  if (dbias.defined()) dbias.add_(dy.sum(0));
}

at::Tensor linear_decode(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return ref::linear(padded(x), weight, bias).narrow(0, 0, x.size(0));
}

}  // namespace cairn::kernels
