#include "models/kernels/norm.h"

#include "models/kernels/check.h"
#include "models/kernels/cpu/simd_norm.h"
#include "models/kernels/cuda/table.h"

namespace cairn::kernels {
namespace {

int64_t row_count(const at::Tensor& x) { return x.size(-1) == 0 ? 0 : x.numel() / x.size(-1); }

NormOutput forward(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight, const at::Tensor& bias,
                   double eps, double offset, bool centre, const char* op) {
  NormForward job;
  job.x = strided_rows<const float>(x, op, "x");
  const int64_t rows = row_count(x), columns = x.size(-1);
  check_floats(weight, {columns}, op, "weight");
  if (bias.defined()) check_floats(bias, {columns}, op, "bias");
  if (residual.defined()) check_floats(residual, x.sizes(), op, "residual");

  NormOutput out;
  out.sum = residual.defined() ? at::empty(x.sizes(), x.options()) : x;
  out.y = at::empty(x.sizes(), x.options());
  out.rstd = at::empty({rows}, x.options());
  if (centre) out.mean = at::empty({rows}, x.options());

  job.rows = static_cast<size_t>(rows), job.columns = static_cast<size_t>(columns);
  job.residual = floats_or_null(residual);
  job.weight = floats_or_null(weight);
  job.bias = floats_or_null(bias);
  job.eps = static_cast<float>(eps), job.offset = static_cast<float>(offset);
  job.centre = centre;
  job.sum = residual.defined() ? mutable_floats_or_null(out.sum) : nullptr;
  job.y = mutable_floats_or_null(out.y);
  job.mean = mutable_floats_or_null(out.mean);
  job.rstd = mutable_floats_or_null(out.rstd);
  simd_norm_forward(job);
  return out;
}

at::Tensor backward(const at::Tensor& dy, const at::Tensor& dsum, const at::Tensor& sum, const at::Tensor& weight,
                    const at::Tensor& mean, const at::Tensor& rstd, double offset, const at::Tensor& dweight,
                    const at::Tensor& dbias, const at::Tensor& out, const char* op) {
  NormBackward job;
  job.dy = strided_rows<const float>(dy, op, "dy");
  job.sum = strided_rows<const float>(sum, op, "sum");
  const int64_t rows = row_count(sum), columns = sum.size(-1);
  if (dy.sizes() != sum.sizes()) {
    throw std::invalid_argument(
        fmt::format("[{}] dy: expected the shape of sum, {}, got {}", op, sum.sizes().vec(), describe(dy)));
  }
  check_floats(weight, {columns}, op, "weight");
  check_floats(rstd, {rows}, op, "rstd");
  if (mean.defined()) check_floats(mean, {rows}, op, "mean");
  if (dweight.defined()) check_floats(dweight, {columns}, op, "dweight");
  if (dbias.defined()) check_floats(dbias, {columns}, op, "dbias");
  const at::Tensor carried = dsum.defined() ? dsum.contiguous() : dsum;
  if (carried.defined()) check_floats(carried, sum.sizes(), op, "dsum");

  const at::Tensor result = out.defined() ? out : at::empty(sum.sizes(), sum.options());
  if (result.sizes() != sum.sizes()) {
    throw std::invalid_argument(
        fmt::format("[{}] out: expected the shape of sum, {}, got {}", op, sum.sizes().vec(), describe(out)));
  }
  const int64_t sums = (dweight.defined() ? 1 : 0) + (dbias.defined() ? 1 : 0);
  const at::Tensor partial =
      at::empty({sums * static_cast<int64_t>(piece_count(static_cast<size_t>(rows))) * columns}, sum.options());

  job.rows = static_cast<size_t>(rows), job.columns = static_cast<size_t>(columns);
  job.dsum = floats_or_null(carried);
  job.weight = floats_or_null(weight);
  job.mean = floats_or_null(mean);
  job.rstd = floats_or_null(rstd);
  job.offset = static_cast<float>(offset);
  job.out = strided_rows<float>(result, op, "out");
  job.dweight = mutable_floats_or_null(dweight);
  job.dbias = mutable_floats_or_null(dbias);
  job.partial = partial.mutable_data_ptr<float>();
  simd_norm_backward(job);
  return result;
}

}  // namespace

NormOutput rms_norm_forward(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight, double eps,
                            double offset) {
  if (cuda::available(x)) {
    const at::Tensor added = residual.defined() ? residual.to(x.scalar_type()).contiguous() : residual;
    return cuda::table()->rms_norm_forward(x, added, weight, eps, offset);
  }
  return forward(x, residual, weight, {}, eps, offset, false, "rms_norm_forward");
}

at::Tensor rms_norm_backward(const at::Tensor& dy, const at::Tensor& dsum, const at::Tensor& sum,
                             const at::Tensor& weight, const at::Tensor& rstd, double offset, const at::Tensor& dweight,
                             const at::Tensor& out) {
  if (cuda::available(sum)) {
    // The kernel adds to float32; the gradient of bfloat16 weights is bfloat16.
    const bool apart = dweight.defined() && dweight.scalar_type() != at::kFloat;
    const at::Tensor wide = apart ? at::zeros(dweight.sizes(), dweight.options().dtype(at::kFloat)) : dweight;
    const at::Tensor ds = cuda::table()->rms_norm_backward(dy, dsum, sum, weight, rstd, offset, wide, out);
    if (apart) at::Tensor(dweight).add_(wide);
    return ds;
  }
  return backward(dy, dsum, sum, weight, {}, rstd, offset, dweight, {}, out, "rms_norm_backward");
}

NormOutput layer_norm_forward(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                              const at::Tensor& bias, double eps) {
  return forward(x, residual, weight, bias, eps, 0, true, "layer_norm_forward");
}

at::Tensor layer_norm_backward(const at::Tensor& dy, const at::Tensor& dsum, const at::Tensor& sum,
                               const at::Tensor& weight, const at::Tensor& mean, const at::Tensor& rstd,
                               const at::Tensor& dweight, const at::Tensor& dbias, const at::Tensor& out) {
  if (!mean.defined())
    throw std::invalid_argument("[layer_norm_backward] mean: expected float32 [rows], got an undefined tensor");
  return backward(dy, dsum, sum, weight, mean, rstd, 0, dweight, dbias, out, "layer_norm_backward");
}

}  // namespace cairn::kernels
