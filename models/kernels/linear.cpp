#include "models/kernels/linear.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "models/kernels/available.h"
#include "models/kernels/cpu/simd_linear.h"
#include "models/kernels/ref/linear.h"

namespace cairn::kernels {
namespace {

constexpr int64_t kRowMultiple = 8;  // MKL: below, a row's bits depend on the other rows and on the threads
constexpr int64_t kDecodeRows = 8;

void check(const char* what, const at::Tensor& x, const at::Tensor& y, int64_t x_dim, int64_t y_dim) {
  if (!available(x) || !available(y) || x.dim() != 2 || y.dim() != 2 || x.size(x_dim) != y.size(y_dim)) {
    throw std::invalid_argument(fmt::format("{}: expected float32 CPU matrices that fit, got {} {} and {} {}", what,
                                            fmt::join(x.sizes(), "x"), c10::toString(x.scalar_type()),
                                            fmt::join(y.sizes(), "x"), c10::toString(y.scalar_type())));
  }
}

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
  if (x.is_cuda()) return ref::linear(x, weight, bias);
  check("linear_forward", x, weight, 1, 1);
  if (x.size(0) <= kDecodeRows) return linear_decode(x, weight, bias);
  return ref::linear(padded(x), weight, bias).narrow(0, 0, x.size(0));
}

at::Tensor linear_backward_input(const at::Tensor& dy, const at::Tensor& weight) {
  if (dy.is_cuda()) return at::mm(dy, weight);
  check("linear_backward_input", dy, weight, 1, 0);
  return at::mm(padded(dy), weight).narrow(0, 0, dy.size(0));
}

void linear_backward_weight_(const at::Tensor& dweight, const at::Tensor& dbias, const at::Tensor& dy,
                             const at::Tensor& x) {
  if (dy.is_cuda()) {
    if (dweight.defined()) at::Tensor(dweight).addmm_(dy.t(), x);
    if (dbias.defined()) at::Tensor(dbias).add_(dy.sum(0));
    return;
  }
  check("linear_backward_weight_", dy, x, 0, 0);
  if (dweight.defined()) dweight.addmm_(dy.t(), x);
  if (dbias.defined()) {
    constexpr int64_t kColumns = 64;
    const at::Tensor dy_c = dy.contiguous();
    const float* from = dy_c.const_data_ptr<float>();
    float* to = dbias.data_ptr<float>();
    const int64_t rows = dy.size(0), out = dy.size(1);
#pragma omp parallel for schedule(static) if (rows * out > 16384)
    for (int64_t c = 0; c < out; c += kColumns) linear_column_sums(from, rows, out, to, c, std::min(c + kColumns, out));
  }
}

at::Tensor linear_decode(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  check("linear_decode", x, weight, 1, 1);
  const int64_t rows = x.size(0), in = x.size(1), out = weight.size(0);
  if (rows > kDecodeRows)
    throw std::invalid_argument(fmt::format("linear_decode: {} rows, expected at most {}", rows, kDecodeRows));
  const at::Tensor x_c = x.contiguous(), w = weight.stride(1) == 1 ? weight : weight.contiguous();
  const at::Tensor b = bias.defined() ? bias.contiguous() : bias;
  auto y = at::empty({rows, out}, x.options());
  const float *x_data = x_c.const_data_ptr<float>(), *w_data = w.const_data_ptr<float>(),
              *b_data = b.defined() ? b.const_data_ptr<float>() : nullptr;
  float* y_data = y.data_ptr<float>();
  const int64_t stride = w.stride(0);
  constexpr int64_t kStrip = 16;  // weight rows that are handed out together
  // A thread takes one of some 32 pieces after the other: memory does not serve all threads alike, and none waits long
  // for one that is held up. Which thread takes what changes no bits.
  const int64_t piece = std::max<int64_t>(kStrip, out / 32 / kStrip * kStrip);
#pragma omp parallel for schedule(dynamic, 1) if (rows * in * out > 32768)
  for (int64_t o = 0; o < out; o += piece)
    linear_few_rows(x_data, rows, in, w_data, stride, b_data, y_data, out, o, std::min(o + piece, out));
  return y;
}

}  // namespace cairn::kernels
