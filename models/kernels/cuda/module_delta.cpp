// The CUDA module's entries for Gated DeltaNet: they check tensors, find the stream and launch. Never run on a GPU so
// far.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <mutex>

#include "models/kernels/aten/upload.h"
#include "models/kernels/cuda/delta_spans.h"
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

// ---- chunks of the delta rule

struct Spans {
  at::Tensor span, first;  // int32 [spans, 4], [B + 1], on the GPU
  int64_t count = 0, states = 0;
};

Spans upload(const DeltaSpans& spans, at::Device device) {
  static_assert(sizeof(DeltaSpan) == 4 * sizeof(int32_t));
  const int64_t count = static_cast<int64_t>(spans.all.size()), firsts = static_cast<int64_t>(spans.first.size());
  const at::Tensor host = at::empty({4 * count + firsts}, at::kInt);
  int32_t* to = host.mutable_data_ptr<int32_t>();
  std::copy_n(reinterpret_cast<const int32_t*>(spans.all.data()), 4 * count, to);
  std::copy_n(spans.first.data(), firsts, to + 4 * count);
  const at::Tensor there = aten::upload(host, device);
  return {there.narrow(0, 0, 4 * count).view({count, 4}), there.narrow(0, 4 * count, firsts), count, spans.states};
}

// Segments lie on the GPU and the chunks are wanted now, so the first call with them waits; the other layers of a pass,
// and the backward pass, find what it found. The tensor is kept, hence its memory is not given to others and equal
// pointer, size and version mean the same numbers.
Spans spans_of(int64_t rows, const DeltaRuleOptions& options, const at::Tensor& like, const char* op) {
  struct Known {
    at::Tensor segments;
    uint32_t version = 0;
    int64_t rows = -1, batch = 0;
    Spans spans;
  };
  static Known* last = new Known;  // never freed: the allocator may be gone when the program ends
  static std::mutex mutex;         // the backward pass runs on a thread of its own
  const at::Tensor& segments = options.segments;
  if (segments.defined()) check(segments, like, at::kInt, {rows}, op, "segments");
  const std::lock_guard lock(mutex);
  const bool tracked = !segments.defined() || !segments.is_inference();
  const uint32_t version = segments.defined() && tracked ? segments._version() : 0;
  const auto same = [&] {
    if (!segments.defined() || !last->segments.defined()) return segments.defined() == last->segments.defined();
    return last->segments.is_alias_of(segments) && last->segments.const_data_ptr() == segments.const_data_ptr() &&
           last->version == version;
  };
  if (tracked && last->rows == rows && last->batch == options.batch && last->spans.first.device() == like.device() &&
      same())
    return last->spans;
  const at::Tensor host = segments.defined() ? segments.cpu() : segments;
  const int32_t* segment = host.defined() ? host.const_data_ptr<int32_t>() : nullptr;
  const Spans spans = upload(delta_spans(rows, options.batch, segment, false), like.device());
  *last = {segments, version, rows, options.batch, spans};
  return spans;
}

// ---- delta rule

// x [N, H, D]: heads one after another, any row stride.
void check_heads(const at::Tensor& x, const at::Tensor& like, const char* op, const char* name) {
  type_of(x, op, name);
  if (x.device() == like.device() && x.scalar_type() == like.scalar_type() && x.dim() == 3 &&
      (x.size(2) <= 1 || x.stride(2) == 1) && (x.size(1) <= 1 || x.stride(1) == x.size(2)))
    return;
  throw std::invalid_argument(
      fmt::format("[{}] {}: expected {} [N, H, D] on {}, last dimension contiguous, heads one after another, got {}",
                  op, name, c10::toString(like.scalar_type()), like.device().str(), describe(x)));
}

// A call with the workspaces of one pass.
struct Prepared {
  DeltaRule call;
  at::TensorOptions floats;
  std::vector<at::Tensor> kept;
  Spans spans;

  float* workspace(at::IntArrayRef shape) {
    kept.push_back(at::empty(shape, floats));
    return kept.back().mutable_data_ptr<float>();
  }
};

// Checks alone; spans, workspaces and what is kept come after.
DeltaRule call_of(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& g,
                  const at::Tensor& beta, const DeltaRuleOptions& options, const char* op) {
  check_heads(q, q, op, "q");
  check_heads(k, q, op, "k");
  check_heads(v, q, op, "v");
  if (q.sizes() != k.sizes() || v.size(0) != k.size(0) || k.size(1) == 0 || v.size(1) % k.size(1) != 0 ||
      options.batch < 1 || k.size(0) % options.batch != 0) {
    throw std::invalid_argument(
        fmt::format("[{}] q {}, k {}, v {}, batch {}: expected q and k [N, Hk, Dk] and v [N, Hv, Dv] with Hk dividing "
                    "Hv and the batch dividing N",
                    op, q.sizes().vec(), k.sizes().vec(), v.sizes().vec(), options.batch));
  }
  check(g, q, at::kFloat, {v.size(0), v.size(1)}, op, "g");
  check(beta, q, at::kFloat, {v.size(0), v.size(1)}, op, "beta");
  DeltaRule call;
  call.type = type_of(q, op, "q");
  call.batch = options.batch, call.rows = q.size(0), call.key_heads = k.size(1), call.value_heads = v.size(1);
  call.key_dim = k.size(2), call.value_dim = v.size(2);
  call.scale = static_cast<float>(options.scale), call.eps = static_cast<float>(options.eps);
  call.q = q.const_data_ptr(), call.k = k.const_data_ptr(), call.v = v.const_data_ptr();
  call.q_stride = q.stride(0), call.k_stride = k.stride(0), call.v_stride = v.stride(0);
  call.g = g.const_data_ptr<float>(), call.beta = beta.const_data_ptr<float>();
  return call;
}

Prepared prepare(const DeltaRule& call, const Spans& spans, const at::Tensor& like) {
  Prepared p{call, like.options().dtype(at::kFloat), {}, spans};
  const int64_t N = call.rows, Hk = call.key_heads, Hv = call.value_heads;
  p.call.spans = spans.count, p.call.states_count = spans.states;
  p.call.span = static_cast<const DeltaSpan*>(spans.span.const_data_ptr());
  p.call.first_span = spans.first.const_data_ptr<int32_t>();
  p.call.q_factor = p.workspace({N, Hk}), p.call.k_factor = p.workspace({N, Hk});
  p.call.by_key = p.workspace({N, Hv, call.key_dim});
  p.call.gate = p.workspace({N, Hv}), p.call.total = p.workspace({spans.count, Hv});
  return p;
}

// Runs the forward pass over `spans`; states may be given in part.
DeltaRuleOutput forward(const DeltaRule& call, const Spans& spans, const at::Tensor& v, const at::Tensor& states,
                        Stream stream) {
  Prepared p = prepare(call, spans, v);
  const int64_t width = call.value_heads * call.value_dim;
  DeltaRuleOutput result{at::empty({call.rows, width}, v.options()), at::empty({call.rows, width}, p.floats), states};
  p.call.corrections = result.corrections.mutable_data_ptr<float>();
  p.call.states = states.mutable_data_ptr<float>();
  cuda::delta_rule_forward({p.call, result.out.mutable_data_ptr()}, stream);
  return result;
}

at::Tensor states_for(const DeltaRule& call, const Spans& spans, const at::Tensor& like) {
  return at::empty({spans.states, call.value_heads, call.key_dim, call.value_dim}, like.options().dtype(at::kFloat));
}

DeltaRuleOutput delta_rule_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& g,
                                   const at::Tensor& beta, const DeltaRuleOptions& options, bool keep) {
  const char* op = "delta_rule_forward";
  const DeltaRule call = call_of(q, k, v, g, beta, options, op);
  const Place place(q);
  const Spans spans = spans_of(call.rows, options, q, op);
  DeltaRuleOutput result = forward(call, spans, v, states_for(call, spans, v), place.stream);
  if (!keep) result.corrections = result.states = at::Tensor();
  return result;
}

void delta_rule_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const at::Tensor& g, const at::Tensor& beta, const DeltaRuleOutput& forward,
                         const DeltaRuleOptions& options, const at::Tensor& dq, const at::Tensor& dk,
                         const at::Tensor& dv, const at::Tensor& dg, const at::Tensor& dbeta) {
  const char* op = "delta_rule_backward";
  const DeltaRule call = call_of(q, k, v, g, beta, options, op);
  const int64_t N = call.rows, Hv = call.value_heads, width = Hv * call.value_dim;
  const Place place(q);
  const Spans spans = spans_of(N, options, q, op);
  check(dout, q, q.scalar_type(), {N, width}, op, "dout");
  check(forward.corrections, q, at::kFloat, {N, width}, op, "corrections");
  check(forward.states, q, at::kFloat, {spans.states, Hv, call.key_dim, call.value_dim}, op, "states");
  check(dg, q, at::kFloat, g.sizes(), op, "dg");
  check(dbeta, q, at::kFloat, g.sizes(), op, "dbeta");
  for (const auto& [gradient, of, name] : {std::tuple{&dq, &q, "dq"}, {&dk, &k, "dk"}, {&dv, &v, "dv"}}) {
    check_heads(*gradient, q, op, name);
    if (gradient->sizes() != of->sizes()) {
      throw std::invalid_argument(
          fmt::format("[{}] {}: expected the shape {}, got {}", op, name, of->sizes().vec(), describe(*gradient)));
    }
  }
  Prepared p = prepare(call, spans, v);
  // Only read here.
  p.call.corrections = const_cast<float*>(forward.corrections.const_data_ptr<float>());
  p.call.states = const_cast<float*>(forward.states.const_data_ptr<float>());
  DeltaRuleBackward job;
  job.dright = p.workspace({N, width}), job.dkeys = p.workspace({N, Hv, call.key_dim});
  job.dstates = p.workspace(forward.states.sizes());
  job.call = p.call;
  job.dout = dout.const_data_ptr();
  job.dq = dq.mutable_data_ptr(), job.dk = dk.mutable_data_ptr(), job.dv = dv.mutable_data_ptr();
  job.dq_stride = dq.stride(0), job.dk_stride = dk.stride(0), job.dv_stride = dv.stride(0);
  job.dg = dg.mutable_data_ptr<float>(), job.dbeta = dbeta.mutable_data_ptr<float>();
  cuda::delta_rule_backward(job, place.stream);
}

at::Tensor delta_rule_decode(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& g,
                             const at::Tensor& beta, const at::Tensor& state, const DeltaRuleOptions& options) {
  const char* op = "delta_rule_decode";
  if (options.batch != 1 || options.segments.defined())
    throw std::invalid_argument(fmt::format("[{}] expected one sequence of one document", op));
  const DeltaRule call = call_of(q, k, v, g, beta, options, op);
  check(state, q, at::kFloat, {call.value_heads, call.key_dim, call.value_dim}, op, "state");
  const Place place(q);
  const Spans spans = upload(delta_spans(call.rows, 1, nullptr, true), q.device());
  const at::Tensor states = states_for(call, spans, v);
  states.select(0, 0).copy_(state);
  const DeltaRuleOutput result = forward(call, spans, v, states, place.stream);
  at::Tensor(state).copy_(states.select(0, spans.states - 1));
  return result.out;
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

void add_delta(Table& table) {
  table.delta_rule_forward = delta_rule_forward;
  table.delta_rule_backward = delta_rule_backward;
  table.delta_rule_decode = delta_rule_decode;
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
