// The CUDA module's entries for what stands around the delta rule, the short convolution and the gates: they check
// tensors, find the stream and launch. Never run on a GPU so far.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "models/kernels/aten/upload.h"
#include "models/kernels/cuda/launchers_delta.h"
#include "models/kernels/cuda/module_checks.h"
#include "models/kernels/cuda/module_parts.h"

namespace cairn::kernels::cuda {
namespace {

float* floats_or_null_of(const at::Tensor& x, const at::Tensor& like, at::IntArrayRef shape, const char* op,
                         const char* name) {
  if (!x.defined()) return nullptr;
  check(x, like, at::kFloat, shape, op, name);
  return x.mutable_data_ptr<float>();
}

// ---- convolution

struct ConvCall {
  CausalConv job;
  at::Tensor columns;
};

ConvCall conv_of(const at::Tensor& x, const at::Tensor& weight, const ConvOptions& options, const char* op) {
  ConvCall call;
  CausalConv& job = call.job;
  job.type = type_of(x, op, "x"), job.weight_type = type_of(weight, op, "weight");
  if (x.dim() != 2) throw std::invalid_argument(fmt::format("[{}] x: expected [N, columns], got {}", op, describe(x)));
  job.x = rows_of(x, op, "x").data, job.x_stride = x.stride(0);
  if (weight.dim() != 2 || weight.size(1) < 1 || weight.size(1) > kConvMaxTaps)
    throw std::invalid_argument(
        fmt::format("[{}] weight: expected [W, taps] with 1 to {} taps, got {}", op, kConvMaxTaps, describe(weight)));
  check(weight, x, weight.scalar_type(), weight.sizes(), op, "weight");
  job.rows = x.size(0), job.width = weight.size(0), job.taps = weight.size(1);
  if (options.batch < 1 || job.rows % options.batch != 0)
    throw std::invalid_argument(fmt::format("[{}] batch: {} does not divide {} rows", op, options.batch, job.rows));
  job.length = std::max<int64_t>(job.rows / options.batch, 1);
  if (options.segments.defined()) {
    check(options.segments, x, at::kInt, {job.rows}, op, "segments");
    job.segments = options.segments.const_data_ptr<int32_t>();
  }
  const at::Tensor columns = at::full({job.width}, -1, at::kInt);
  int32_t* column = columns.mutable_data_ptr<int32_t>();
  int64_t covered = 0;
  for (const ConvRun& run : options.runs) {
    covered += run.count;
    if (run.from < 0 || run.to < 0 || run.count < 0 || run.from + run.count > x.size(1) ||
        run.to + run.count > job.width) {
      throw std::invalid_argument(fmt::format("[{}] runs: columns {} to {} of {} become {} to {} of {}", op, run.from,
                                              run.from + run.count, x.size(1), run.to, run.to + run.count, job.width));
    }
    for (int64_t i = 0; i < run.count; ++i) column[run.to + i] = static_cast<int32_t>(run.from + i);
  }
  if (covered != job.width || std::count(column, column + job.width, -1) > 0)
    throw std::invalid_argument(
        fmt::format("[{}] runs: they cover {} columns, expected {}, each once", op, covered, job.width));
  call.columns = aten::upload(columns, x.device());
  job.column = call.columns.const_data_ptr<int32_t>();
  job.weight = weight.const_data_ptr();
  return call;
}

at::Tensor causal_conv_forward(const at::Tensor& x, const at::Tensor& weight, const ConvOptions& options) {
  ConvCall call = conv_of(x, weight, options, "causal_conv_forward");
  const Place place(x);
  const at::Tensor y = at::empty({call.job.rows, call.job.width}, x.options());
  call.job.y = y.mutable_data_ptr();
  cuda::causal_conv_forward(call.job, place.stream);
  return y;
}

void causal_conv_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight,
                          const ConvOptions& options, const at::Tensor& dx, const at::Tensor& dweight) {
  const char* op = "causal_conv_backward";
  ConvCall call = conv_of(x, weight, options, op);
  const Place place(x);
  check(dy, x, x.scalar_type(), {call.job.rows, call.job.width}, op, "dy");
  check_same(dx, x, op, "dx", "x");
  call.job.dweight = floats_or_null_of(dweight, x, weight.sizes(), op, "dweight");
  const at::Tensor partial =
      at::empty({dweight.defined() ? weight_pieces(call.job.rows) : 0, call.job.width, kConvMaxTaps},
                x.options().dtype(at::kFloat));
  call.job.dy = dy.mutable_data_ptr();
  call.job.dx = rows_of(dx, op, "dx").data, call.job.dx_stride = dx.stride(0);
  call.job.partial = partial.mutable_data_ptr<float>();
  cuda::causal_conv_backward(call.job, place.stream);
}

at::Tensor causal_conv_decode(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& history,
                              const ConvOptions& options) {
  const char* op = "causal_conv_decode";
  if (options.batch != 1 || options.segments.defined())
    throw std::invalid_argument(fmt::format("[{}] expected one sequence of one document", op));
  ConvCall call = conv_of(x, weight, options, op);
  const Place place(x);
  const int64_t past = call.job.taps - 1;
  check(history, x, x.scalar_type(), {past, x.size(1)}, op, "history");
  call.job.history = history.const_data_ptr(), call.job.history_stride = x.size(1), call.job.past = past;
  const at::Tensor y = at::empty({call.job.rows, call.job.width}, x.options());
  call.job.y = y.mutable_data_ptr();
  cuda::causal_conv_forward(call.job, place.stream);
  at::Tensor(history).copy_(at::cat({history, x}).narrow(0, x.size(0), past));
  return y;
}

// ---- gates

GateStrides gate_of(const at::Tensor& z, const at::Tensor& x, const char* op, const char* name) {
  type_of(z, op, name);
  const bool fits = z.device() == x.device() && z.scalar_type() == x.scalar_type() && z.dim() == 4 && x.dim() == 3 &&
                    z.size(0) == x.size(0) && z.size(1) * z.size(2) == x.size(1) && z.size(3) == x.size(2) &&
                    (z.size(3) <= 1 || z.stride(3) == 1) && (z.size(2) <= 1 || z.stride(2) == z.size(3));
  if (!fits) {
    throw std::invalid_argument(
        fmt::format("[{}] {}: expected [N, K, H / K, D] with type and device of x ({}), the last two dimensions one "
                    "after another, got {}",
                    op, name, describe(x), describe(z)));
  }
  return {z.stride(0), z.stride(1), z.size(2)};
}

// weight undefined: the sigmoid alone.
GatedNorm norm_of(const at::Tensor& x, const at::Tensor& z, const at::Tensor& weight, const char* op) {
  GatedNorm job;
  job.type = job.weight_type = type_of(x, op, "x");
  job.z_strides = gate_of(z, x, op, "z");
  check(x, x, x.scalar_type(), x.sizes(), op, "x");
  job.tokens = x.size(0), job.heads = x.size(1), job.columns = x.size(2);
  if (weight.defined()) {
    job.weight_type = type_of(weight, op, "weight");
    check(weight, x, weight.scalar_type(), {job.columns}, op, "weight");
  }
  job.x = x.const_data_ptr(), job.z = z.const_data_ptr(), job.weight = data_or_null(weight);
  return job;
}

GatedNormOutput gate_forward(const at::Tensor& x, const at::Tensor& z, const at::Tensor& weight, double eps,
                             const char* op) {
  GatedNorm job = norm_of(x, z, weight, op);
  const Place place(x);
  GatedNormOutput out{at::empty(x.sizes(), x.options()), at::Tensor()};
  if (weight.defined()) {
    out.rstd = at::empty({job.tokens * job.heads}, x.options().dtype(at::kFloat));
    job.rstd = out.rstd.mutable_data_ptr<float>();
  }
  job.eps = static_cast<float>(eps), job.y = out.y.mutable_data_ptr();
  cuda::gated_norm_forward(job, place.stream);
  return out;
}

at::Tensor gate_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& z, const at::Tensor& weight,
                         const at::Tensor& rstd, const at::Tensor& dz, const at::Tensor& dweight, const char* op) {
  GatedNorm job = norm_of(x, z, weight, op);
  job.dz_strides = gate_of(dz, x, op, "dz");
  check(dy, x, x.scalar_type(), x.sizes(), op, "dy");
  const int64_t rows = job.tokens * job.heads;
  if (weight.defined()) {
    check(rstd, x, at::kFloat, {rows}, op, "rstd");
    job.rstd = const_cast<float*>(rstd.const_data_ptr<float>());  // only read here
    job.dweight = floats_or_null_of(dweight, x, weight.sizes(), op, "dweight");
  }
  const Place place(x);
  const at::Tensor dx = at::empty(x.sizes(), x.options());
  const at::Tensor partial =
      at::empty({job.dweight ? weight_pieces(rows) : 0, job.columns}, x.options().dtype(at::kFloat));
  job.dy = dy.const_data_ptr(), job.dx = dx.mutable_data_ptr(), job.dz = dz.mutable_data_ptr();
  job.partial = partial.mutable_data_ptr<float>();
  cuda::gated_norm_backward(job, place.stream);
  return dx;
}

GatedNormOutput gated_norm_forward(const at::Tensor& x, const at::Tensor& z, const at::Tensor& weight, double eps) {
  type_of(weight, "gated_norm_forward", "weight");
  return gate_forward(x, z, weight, eps, "gated_norm_forward");
}
at::Tensor gated_norm_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& z, const at::Tensor& weight,
                               const at::Tensor& rstd, const at::Tensor& dz, const at::Tensor& dweight) {
  type_of(weight, "gated_norm_backward", "weight");
  return gate_backward(dy, x, z, weight, rstd, dz, dweight, "gated_norm_backward");
}
at::Tensor sigmoid_gate_forward(const at::Tensor& x, const at::Tensor& z) {
  return gate_forward(x, z, {}, 0, "sigmoid_gate_forward").y;
}
at::Tensor sigmoid_gate_backward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& z, const at::Tensor& dz) {
  return gate_backward(dy, x, z, {}, {}, dz, {}, "sigmoid_gate_backward");
}

DeltaGates gates_of(const at::Tensor& ba, const at::Tensor& A_log, const at::Tensor& dt_bias, int64_t key_heads,
                    const char* op) {
  DeltaGates job;
  job.type = type_of(ba, op, "ba"), job.weight_type = type_of(A_log, op, "A_log");
  const int64_t heads = A_log.numel();
  if (key_heads < 1 || heads % key_heads != 0)
    throw std::invalid_argument(fmt::format("[{}] key_heads: {} does not divide {} heads", op, key_heads, heads));
  if (ba.dim() != 2 || ba.size(1) != 2 * heads)
    throw std::invalid_argument(fmt::format("[{}] ba: expected [N, {}], got {}", op, 2 * heads, describe(ba)));
  check(A_log, ba, A_log.scalar_type(), {heads}, op, "A_log");
  check(dt_bias, ba, A_log.scalar_type(), {heads}, op, "dt_bias");
  job.rows = ba.size(0), job.key_heads = key_heads, job.heads = heads;
  job.ba = rows_of(ba, op, "ba").data, job.ba_stride = ba.stride(0);
  job.A_log = A_log.const_data_ptr(), job.dt_bias = dt_bias.const_data_ptr();
  return job;
}

DeltaGatesOutput delta_gates_forward(const at::Tensor& ba, const at::Tensor& A_log, const at::Tensor& dt_bias,
                                     int64_t key_heads) {
  DeltaGates job = gates_of(ba, A_log, dt_bias, key_heads, "delta_gates_forward");
  const Place place(ba);
  const auto floats = ba.options().dtype(at::kFloat);
  DeltaGatesOutput out{at::empty({job.rows, job.heads}, floats), at::empty({job.rows, job.heads}, floats)};
  job.g = out.g.mutable_data_ptr<float>(), job.beta = out.beta.mutable_data_ptr<float>();
  cuda::delta_gates_forward(job, place.stream);
  return out;
}

void delta_gates_backward(const at::Tensor& dg, const at::Tensor& dbeta, const DeltaGatesOutput& forward,
                          const at::Tensor& ba, const at::Tensor& A_log, const at::Tensor& dt_bias, int64_t key_heads,
                          const at::Tensor& dba, const at::Tensor& dA_log, const at::Tensor& ddt_bias) {
  const char* op = "delta_gates_backward";
  DeltaGates job = gates_of(ba, A_log, dt_bias, key_heads, op);
  for (const auto& [x, name] : {std::pair{&dg, "dg"}, {&dbeta, "dbeta"}, {&forward.g, "g"}, {&forward.beta, "beta"}})
    check(*x, ba, at::kFloat, {job.rows, job.heads}, op, name);
  check_same(dba, ba, op, "dba", "ba");
  job.dA_log = floats_or_null_of(dA_log, ba, {job.heads}, op, "dA_log");
  job.ddt_bias = floats_or_null_of(ddt_bias, ba, {job.heads}, op, "ddt_bias");
  const Place place(ba);
  const at::Tensor partial = at::empty({weight_pieces(job.rows), job.heads, 2}, ba.options().dtype(at::kFloat));
  // Only read here.
  job.g = const_cast<float*>(forward.g.const_data_ptr<float>());
  job.beta = const_cast<float*>(forward.beta.const_data_ptr<float>());
  job.dg = dg.const_data_ptr<float>(), job.dbeta = dbeta.const_data_ptr<float>();
  job.dba = rows_of(dba, op, "dba").data, job.dba_stride = dba.stride(0);
  job.partial = partial.mutable_data_ptr<float>();
  cuda::delta_gates_backward(job, place.stream);
}

}  // namespace

void add_gates(Table& table) {
  table.causal_conv_forward = causal_conv_forward;
  table.causal_conv_backward = causal_conv_backward;
  table.causal_conv_decode = causal_conv_decode;
  table.delta_gates_forward = delta_gates_forward;
  table.delta_gates_backward = delta_gates_backward;
  table.gated_norm_forward = gated_norm_forward;
  table.gated_norm_backward = gated_norm_backward;
  table.sigmoid_gate_forward = sigmoid_gate_forward;
  table.sigmoid_gate_backward = sigmoid_gate_backward;
}

}  // namespace cairn::kernels::cuda
