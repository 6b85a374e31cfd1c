// The CUDA module's entries for the delta rule: they check tensors, find the stream and launch. Never run on a GPU so
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

}  // namespace

void add_delta(Table& table) {
  table.delta_rule_forward = delta_rule_forward;
  table.delta_rule_backward = delta_rule_backward;
  table.delta_rule_decode = delta_rule_decode;
}

}  // namespace cairn::kernels::cuda
