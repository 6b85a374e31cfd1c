#include "models/kernels/gated_norm.h"

#include "models/kernels/check.h"
#include "models/kernels/cpu/simd_gated_norm.h"
#include "models/kernels/cuda/table.h"

namespace cairn::kernels {
namespace {

GateRows gate_rows(const at::Tensor& z, const at::Tensor& x, const char* op, const char* name) {
  const bool fits = z.defined() && z.is_cpu() && z.scalar_type() == at::kFloat && z.dim() == 4 && x.dim() == 3 &&
                    z.size(0) == x.size(0) && z.size(1) * z.size(2) == x.size(1) && z.size(3) == x.size(2) &&
                    (z.size(3) <= 1 || z.stride(3) == 1) && (z.size(2) <= 1 || z.stride(2) == z.size(3));
  if (!fits) {
    throw std::invalid_argument(
        fmt::format("[{}] {}: expected float32 [N, K, H / K, D] on the CPU beside x {}, the last two dimensions one "
                    "after another, got {}",
                    op, name, x.sizes().vec(), describe(z)));
  }
  return {z.stride(0), z.stride(1), z.size(2)};
}

GatedNorm job_of(const at::Tensor& x, const at::Tensor& z, const at::Tensor& weight, const char* op) {
  GatedNorm job;
  job.z_rows = gate_rows(z, x, op, "z");
  check_floats(x, x.sizes(), op, "x");
  check_floats(weight, {x.size(2)}, op, "weight");
  job.tokens = x.size(0), job.heads = x.size(1), job.columns = x.size(2);
  job.x = x.const_data_ptr<float>(), job.z = z.const_data_ptr<float>(), job.weight = weight.const_data_ptr<float>();
  return job;
}

}  // namespace

GatedNormOutput gated_norm_forward(const at::Tensor& x, const at::Tensor& z, const at::Tensor& weight, double eps) {
  if (cuda::available(x)) return cuda::table()->gated_norm_forward(x, z, weight, eps);
  GatedNorm job = job_of(x, z, weight, "gated_norm_forward");
  GatedNormOutput out{at::empty(x.sizes(), x.options()), at::empty({job.tokens * job.heads}, x.options())};
  job.eps = static_cast<float>(eps);
  job.rstd = out.rstd.mutable_data_ptr<float>();
  job.y = out.y.mutable_data_ptr<float>();
  simd_gated_norm_forward(job);
  return out;
}

at::Tensor gated_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& z, const at::Tensor& weight,
                               const at::Tensor& rstd, const at::Tensor& dz, const at::Tensor& dweight) {
  if (cuda::available(x)) return cuda::table()->gated_norm_backward(dy, x, z, weight, rstd, dz, dweight);
  const char* op = "gated_norm_backward";
  GatedNorm job = job_of(x, z, weight, op);
  job.dz_rows = gate_rows(dz, x, op, "dz");
  check_floats(dy, x.sizes(), op, "dy");
  check_floats(rstd, {job.tokens * job.heads}, op, "rstd");
  if (dweight.defined()) check_floats(dweight, weight.sizes(), op, "dweight");
  const at::Tensor dx = at::empty(x.sizes(), x.options());
  const at::Tensor partial = at::empty(
      {static_cast<int64_t>(piece_count(static_cast<size_t>(job.tokens * job.heads))), job.columns}, x.options());
  job.rstd = const_cast<float*>(rstd.const_data_ptr<float>());  // only read here
  job.dy = dy.const_data_ptr<float>();
  job.dx = dx.mutable_data_ptr<float>(), job.dz = dz.mutable_data_ptr<float>();
  job.dweight = mutable_floats_or_null(dweight), job.partial = partial.mutable_data_ptr<float>();
  simd_gated_norm_backward(job);
  return dx;
}

namespace {

SigmoidGate gate_job(const at::Tensor& x, const at::Tensor& z, const char* op) {
  SigmoidGate job;
  job.z_rows = gate_rows(z, x, op, "z");
  check_floats(x, x.sizes(), op, "x");
  job.tokens = x.size(0), job.heads = x.size(1), job.columns = x.size(2);
  job.x = x.const_data_ptr<float>(), job.z = z.const_data_ptr<float>();
  return job;
}

}  // namespace

at::Tensor sigmoid_gate_forward(const at::Tensor& x, const at::Tensor& z) {
  if (cuda::available(x)) return cuda::table()->sigmoid_gate_forward(x, z);
  SigmoidGate job = gate_job(x, z, "sigmoid_gate_forward");
  const at::Tensor y = at::empty(x.sizes(), x.options());
  job.y = y.mutable_data_ptr<float>();
  simd_sigmoid_gate_forward(job);
  return y;
}

at::Tensor sigmoid_gate_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& z, const at::Tensor& dz) {
  if (cuda::available(x)) return cuda::table()->sigmoid_gate_backward(dy, x, z, dz);
  const char* op = "sigmoid_gate_backward";
  SigmoidGate job = gate_job(x, z, op);
  job.dz_rows = gate_rows(dz, x, op, "dz");
  check_floats(dy, x.sizes(), op, "dy");
  const at::Tensor dx = at::empty(x.sizes(), x.options());
  job.dy = dy.const_data_ptr<float>();
  job.dx = dx.mutable_data_ptr<float>(), job.dz = dz.mutable_data_ptr<float>();
  simd_sigmoid_gate_backward(job);
  return dx;
}

}  // namespace cairn::kernels
