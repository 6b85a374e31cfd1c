#include "models/kernels/delta_gates.h"

#include "models/kernels/check.h"
#include "models/kernels/cpu/simd_gated_norm.h"
#include "models/kernels/cuda/table.h"

namespace cairn::kernels {
namespace {

DeltaGates job_of(const at::Tensor& ba, const at::Tensor& A_log, const at::Tensor& dt_bias, int64_t key_heads,
                  const char* op) {
  const int64_t heads = A_log.defined() ? A_log.size(0) : 0;
  if (key_heads < 1 || heads % key_heads != 0)
    throw std::invalid_argument(fmt::format("[{}] key_heads: {} does not divide {} heads", op, key_heads, heads));
  strided_rows<const float>(ba, op, "ba");
  if (ba.dim() != 2 || ba.size(1) != 2 * heads)
    throw std::invalid_argument(fmt::format("[{}] ba: expected [N, {}], got {}", op, 2 * heads, describe(ba)));
  check_floats(A_log, {heads}, op, "A_log");
  check_floats(dt_bias, {heads}, op, "dt_bias");
  DeltaGates job;
  job.rows = ba.size(0), job.key_heads = key_heads, job.heads = heads;
  job.ba = ba.const_data_ptr<float>(), job.ba_stride = ba.stride(0);
  job.A_log = A_log.const_data_ptr<float>(), job.dt_bias = dt_bias.const_data_ptr<float>();
  return job;
}

}  // namespace

DeltaGatesOutput delta_gates_forward(const at::Tensor& ba, const at::Tensor& A_log, const at::Tensor& dt_bias,
                                     int64_t key_heads) {
  if (cuda::available(ba)) return cuda::table()->delta_gates_forward(ba, A_log, dt_bias, key_heads);
  DeltaGates job = job_of(ba, A_log, dt_bias, key_heads, "delta_gates_forward");
  DeltaGatesOutput out{at::empty({job.rows, job.heads}, ba.options()), at::empty({job.rows, job.heads}, ba.options())};
  job.g = out.g.mutable_data_ptr<float>(), job.beta = out.beta.mutable_data_ptr<float>();
  simd_delta_gates_forward(job);
  return out;
}

void delta_gates_backward(const at::Tensor& dg, const at::Tensor& dbeta, const DeltaGatesOutput& forward,
                          const at::Tensor& ba, const at::Tensor& A_log, const at::Tensor& dt_bias, int64_t key_heads,
                          const at::Tensor& dba, const at::Tensor& dA_log, const at::Tensor& ddt_bias) {
  if (cuda::available(ba))
    return cuda::table()->delta_gates_backward(dg, dbeta, forward, ba, A_log, dt_bias, key_heads, dba, dA_log,
                                               ddt_bias);
  const char* op = "delta_gates_backward";
  DeltaGates job = job_of(ba, A_log, dt_bias, key_heads, op);
  for (const auto& [x, name] : {std::pair{&dg, "dg"}, {&dbeta, "dbeta"}, {&forward.g, "g"}, {&forward.beta, "beta"}})
    check_floats(*x, {job.rows, job.heads}, op, name);
  for (const auto& [x, name] : {std::pair{&dA_log, "dA_log"}, {&ddt_bias, "ddt_bias"}})
    if (x->defined()) check_floats(*x, {job.heads}, op, name);
  strided_rows<float>(dba, op, "dba");
  if (dba.sizes() != ba.sizes())
    throw std::invalid_argument(fmt::format("[{}] dba: expected {}, got {}", op, ba.sizes().vec(), describe(dba)));
  const at::Tensor partial =
      at::empty({2 * static_cast<int64_t>(piece_count(static_cast<size_t>(job.rows))), job.heads}, ba.options());
  // Only read here.
  job.g = const_cast<float*>(forward.g.const_data_ptr<float>());
  job.beta = const_cast<float*>(forward.beta.const_data_ptr<float>());
  job.dg = dg.const_data_ptr<float>(), job.dbeta = dbeta.const_data_ptr<float>();
  job.dba = dba.mutable_data_ptr<float>(), job.dba_stride = dba.stride(0);
  job.dA_log = mutable_floats_or_null(dA_log), job.ddt_bias = mutable_floats_or_null(ddt_bias);
  job.partial = partial.mutable_data_ptr<float>();
  simd_delta_gates_backward(job);
}

}  // namespace cairn::kernels
