// The table of the CUDA module, and its entries for norms, activations, rope and flat memory: they check tensors, find
// the stream and launch. Like the other module_*.cpp compiled into libcairn_cuda.so, not into the program. Never run on
// a GPU so far.
#include <ATen/ATen.h>
#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/headeronly/version.h>

#include <mutex>

#include "models/kernels/cuda/module_checks.h"
#include "models/kernels/cuda/module_parts.h"
#include "models/kernels/cuda/table.h"

namespace cairn::kernels::cuda {
namespace {

NormOutput rms_norm_forward(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight, double eps,
                            double offset) {
  const char* op = "rms_norm_forward";
  RmsNormForward job;
  job.type = type_of(x, op, "x"), job.x = rows_of(x, op, "x");
  job.weight_type = type_of(weight, op, "weight");
  job.rows = row_count(x), job.columns = x.size(-1);
  check(weight, x, weight.scalar_type(), {job.columns}, op, "weight");
  if (residual.defined()) check(residual, x, x.scalar_type(), x.sizes(), op, "residual");

  const Place place(x);
  NormOutput out;
  out.sum = residual.defined() ? at::empty(x.sizes(), x.options()) : x;
  out.y = at::empty(x.sizes(), x.options());
  out.rstd = at::empty({job.rows}, x.options().dtype(at::kFloat));
  job.residual = data_or_null(residual), job.weight = weight.const_data_ptr();
  job.eps = static_cast<float>(eps), job.offset = static_cast<float>(offset);
  job.sum = residual.defined() ? out.sum.mutable_data_ptr() : nullptr;
  job.y = out.y.mutable_data_ptr(), job.rstd = out.rstd.mutable_data_ptr<float>();
  cuda::rms_norm_forward(job, place.stream);
  return out;
}

at::Tensor rms_norm_backward(const at::Tensor& dy, const at::Tensor& dsum, const at::Tensor& sum,
                             const at::Tensor& weight, const at::Tensor& rstd, double offset, const at::Tensor& dweight,
                             const at::Tensor& out) {
  const char* op = "rms_norm_backward";
  RmsNormBackward job;
  job.type = type_of(sum, op, "sum"), job.sum = rows_of(sum, op, "sum");
  check_same(dy, sum, op, "dy", "sum");
  job.dy = rows_of(dy, op, "dy");
  job.weight_type = type_of(weight, op, "weight");
  job.rows = row_count(sum), job.columns = sum.size(-1);
  check(weight, sum, weight.scalar_type(), {job.columns}, op, "weight");
  check(rstd, sum, at::kFloat, {job.rows}, op, "rstd");
  if (dweight.defined()) check(dweight, sum, at::kFloat, {job.columns}, op, "dweight");

  const Place place(sum);
  const at::Tensor carried = dsum.defined() ? dsum.contiguous() : dsum;
  if (carried.defined()) check(carried, sum, sum.scalar_type(), sum.sizes(), op, "dsum");
  const at::Tensor result = out.defined() ? out : at::empty(sum.sizes(), sum.options());
  check_same(result, sum, op, "out", "sum");
  at::Tensor partial;
  if (dweight.defined()) {
    partial = at::empty({weight_pieces(job.rows), job.columns}, sum.options().dtype(at::kFloat));
    job.dweight = dweight.mutable_data_ptr<float>(), job.partial = partial.mutable_data_ptr<float>();
  }
  job.dsum = data_or_null(carried), job.weight = weight.const_data_ptr();
  job.rstd = rstd.const_data_ptr<float>(), job.offset = static_cast<float>(offset);
  job.out = rows_of(result, op, "out");
  cuda::rms_norm_backward(job, place.stream);
  return result;
}

Gated gated_job(const at::Tensor& gate_up, const char* op, const char* name) {
  Gated job;
  job.type = type_of(gate_up, op, name);
  const Rows rows = rows_of(gate_up, op, name);
  if (gate_up.dim() != 2 || gate_up.size(1) % 2 != 0)
    throw std::invalid_argument(fmt::format("[{}] {}: expected [N, 2F], got {}", op, name, describe(gate_up)));
  job.rows = gate_up.size(0), job.columns = gate_up.size(1) / 2;
  job.gate_up = rows.data, job.gate_up_stride = rows.outer_stride;
  return job;
}

at::Tensor gated_forward(const at::Tensor& gate_up, Activation kind) {
  Gated job = gated_job(gate_up, "gated_forward", "gate_up");
  const Place place(gate_up);
  const at::Tensor h = at::empty({job.rows, job.columns}, gate_up.options());
  job.out = h.mutable_data_ptr(), job.out_stride = job.columns;
  gated(job, static_cast<int>(kind), place.stream);
  return h;
}

at::Tensor gated_backward(const at::Tensor& dh, const at::Tensor& gate_up, Activation kind, const at::Tensor& out) {
  const char* op = "gated_backward";
  Gated job = gated_job(gate_up, op, "gate_up");
  check(dh, gate_up, gate_up.scalar_type(), {job.rows, job.columns}, op, "dh");
  const Place place(gate_up);
  const at::Tensor result = out.defined() ? out : at::empty(gate_up.sizes(), gate_up.options());
  check_same(result, gate_up, op, "out", "gate_up");
  const Rows rows = rows_of(result, op, "out");
  job.dh = dh.const_data_ptr(), job.out = rows.data, job.out_stride = rows.outer_stride;
  gated(job, static_cast<int>(kind), place.stream);
  return result;
}

at::Tensor activation_forward(const at::Tensor& x, Activation kind) {
  const Type type = type_of(x, "activation_forward", "x");
  check(x, x, x.scalar_type(), x.sizes(), "activation_forward", "x");
  const Place place(x);
  const at::Tensor y = at::empty(x.sizes(), x.options());
  activation(type, x.const_data_ptr(), nullptr, y.mutable_data_ptr(), x.numel(), static_cast<int>(kind), place.stream);
  return y;
}

at::Tensor activation_backward(const at::Tensor& dy, const at::Tensor& x, Activation kind) {
  const Type type = type_of(x, "activation_backward", "x");
  check(x, x, x.scalar_type(), x.sizes(), "activation_backward", "x");
  check(dy, x, x.scalar_type(), x.sizes(), "activation_backward", "dy");
  const Place place(x);
  const at::Tensor dx = at::empty(x.sizes(), x.options());
  activation(type, x.const_data_ptr(), dy.const_data_ptr(), dx.mutable_data_ptr(), x.numel(), static_cast<int>(kind),
             place.stream);
  return dx;
}

// Positions lie on the GPU and the answer is wanted now, so the first call with them waits. The tensor is kept, hence
// its memory is not given to others and equal pointer, size and version mean the same numbers.
void check_positions(const at::Tensor& positions, int64_t table_rows) {
  struct Checked {
    at::Tensor positions;
    uint32_t version = 0;
    int64_t table_rows = 0;
  };
  static Checked* last = new Checked;  // never freed: the allocator may be gone when the program ends
  static std::mutex mutex;             // the backward pass runs on a thread of its own
  const std::lock_guard lock(mutex);
  const uint32_t version = positions.is_inference() ? 0 : positions._version();
  if (last->positions.defined() && !positions.is_inference() && last->positions.is_alias_of(positions) &&
      last->positions.const_data_ptr() == positions.const_data_ptr() && last->positions.numel() == positions.numel() &&
      last->version == version && last->table_rows <= table_rows)
    return;
  const at::Tensor host = positions.cpu();
  const int32_t* position = host.const_data_ptr<int32_t>();
  for (int64_t n = 0; n < host.numel(); ++n) {
    if (position[n] >= 0 && position[n] < table_rows) continue;
    throw std::invalid_argument(
        fmt::format("[rope_] positions[{}] is {}, outside the table of {} positions", n, position[n], table_rows));
  }
  *last = {positions, version, table_rows};
}

void rope_(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& cos, const at::Tensor& sin,
           bool interleaved, bool inverse) {
  const char* op = "rope_";
  const Rows rows = rows_of(x, op, "x");
  if (x.dim() != 3) throw std::invalid_argument(fmt::format("[{}] x: expected [N, H, D], got {}", op, describe(x)));
  check(positions, x, at::kInt, {x.size(0)}, op, "positions");
  if (!cos.defined() || cos.dim() != 2 || 2 * cos.size(1) > x.size(2)) {
    throw std::invalid_argument(
        fmt::format("[{}] cos: expected [max_position, R/2] with R at most {}, got {}", op, x.size(2), describe(cos)));
  }
  check(cos, x, at::kFloat, cos.sizes(), op, "cos");
  check(sin, x, at::kFloat, cos.sizes(), op, "sin");

  const Place place(x);
  check_positions(positions, cos.size(0));
  Rope job;
  job.type = type_of(x, op, "x");
  job.rows = x.size(0), job.heads = x.size(1), job.half = cos.size(1);
  job.x = rows.data, job.row_stride = rows.outer_stride, job.head_stride = rows.inner_stride;
  job.positions = positions.const_data_ptr<int32_t>(), job.table_rows = cos.size(0);
  job.cos = cos.const_data_ptr<float>(), job.sin = sin.const_data_ptr<float>();
  job.interleaved = interleaved, job.inverse = inverse;
  rope(job, place.stream);
}

void adamw_on_current(const AdamwRun& run, const AdamwScalars& scalars) {
  adamw(run, scalars, c10::cuda::getCurrentCUDAStream());
}

void squared_norm_pieces_to_host(const at::Tensor& flat, int64_t piece, double* out) {
  const char* op = "squared_norm_pieces";
  if (piece <= 0) throw std::invalid_argument(fmt::format("[{}] piece: expected a positive number, got {}", op, piece));
  type_of(flat, op, "flat");
  check(flat, flat, at::kFloat, {flat.numel()}, op, "flat");
  const Place place(flat);
  const int64_t pieces = (flat.numel() + piece - 1) / piece;
  const at::Tensor sums = at::empty({pieces}, flat.options().dtype(at::kDouble));
  squared_norm_pieces(flat.const_data_ptr<float>(), flat.numel(), piece, sums.mutable_data_ptr<double>(), place.stream);
  const at::Tensor host = sums.cpu();
  std::copy_n(host.const_data_ptr<double>(), pieces, out);
}

std::string gpu_name(int index) {
  cudaDeviceProp properties{};
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, index); error != cudaSuccess)
    throw std::runtime_error(fmt::format("GPU {}: {}", index, cudaGetErrorString(error)));
  return fmt::format("{}, sm {}{}", properties.name, properties.major, properties.minor);
}

Table make_table() {
  Table table{sizeof(Table),       TORCH_VERSION, CUDART_VERSION,   rms_norm_forward,
              rms_norm_backward,   gated_forward, gated_backward,   activation_forward,
              activation_backward, rope_,         adamw_on_current, squared_norm_pieces_to_host};
  add_sparse(table);
  add_experts(table);
  add_delta(table);
  add_gates(table);
  table.gpu_name = gpu_name;
  return table;
}

}  // namespace
}  // namespace cairn::kernels::cuda

extern "C" __attribute__((visibility("default"))) const cairn::kernels::cuda::Table* cairn_cuda_table() {
  static const cairn::kernels::cuda::Table table = cairn::kernels::cuda::make_table();
  return &table;
}
