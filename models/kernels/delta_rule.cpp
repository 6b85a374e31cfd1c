#include "models/kernels/delta_rule.h"

#include <omp.h>

#include "models/kernels/check.h"
#include "models/kernels/cpu/simd_delta_rule.h"
#include "models/kernels/cuda/table.h"

namespace cairn::kernels {
namespace {

constexpr int64_t kTokenByToken = 16;  // rows that decoding takes one by one

struct HeadRows {
  const float* data;
  int64_t stride;
};

// x [N, H, D]: heads one after another.
HeadRows head_rows(const at::Tensor& x, const char* op, const char* name) {
  const bool fits = x.defined() && x.is_cpu() && x.scalar_type() == at::kFloat && x.dim() == 3 &&
                    (x.size(2) <= 1 || x.stride(2) == 1) && (x.size(1) <= 1 || x.stride(1) == x.size(2));
  if (!fits) {
    throw std::invalid_argument(
        fmt::format("[{}] {}: expected float32 [N, H, D] on the CPU, last dimension contiguous, heads one after "
                    "another, got {}",
                    op, name, describe(x)));
  }
  return {x.const_data_ptr<float>(), x.stride(0)};
}

DeltaCall call_of(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& g,
                  const at::Tensor& beta, const DeltaRuleOptions& options, const char* op) {
  const HeadRows q_rows = head_rows(q, op, "q"), k_rows = head_rows(k, op, "k"), v_rows = head_rows(v, op, "v");
  if (q.sizes() != k.sizes() || v.size(0) != k.size(0) || k.size(1) == 0 || v.size(1) % k.size(1) != 0 ||
      options.batch < 1 || k.size(0) % options.batch != 0) {
    throw std::invalid_argument(
        fmt::format("[{}] q {}, k {}, v {}, batch {}: expected q and k [N, Hk, Dk] and v [N, Hv, Dv] with Hk dividing "
                    "Hv and the batch dividing N",
                    op, q.sizes().vec(), k.sizes().vec(), v.sizes().vec(), options.batch));
  }
  check_floats(g, {v.size(0), v.size(1)}, op, "g");
  check_floats(beta, {v.size(0), v.size(1)}, op, "beta");
  DeltaCall call;
  call.key_heads = k.size(1), call.value_heads = v.size(1);
  call.key_dim = k.size(2), call.value_dim = v.size(2);
  call.key_padded = (call.key_dim + 15) / 16 * 16, call.value_padded = (call.value_dim + 15) / 16 * 16;
  call.scale = static_cast<float>(options.scale), call.eps = static_cast<float>(options.eps);
  call.q = q_rows.data, call.q_stride = q_rows.stride;
  call.k = k_rows.data, call.k_stride = k_rows.stride;
  call.v = v_rows.data, call.v_stride = v_rows.stride;
  call.g = g.const_data_ptr<float>(), call.beta = beta.const_data_ptr<float>();
  return call;
}

// The chunks of all sequences; those of sequence b are [first[b], first[b + 1]).
struct Chunks {
  std::vector<DeltaChunk> all;
  std::vector<int64_t> first;
  int64_t states = 0;
};

Chunks chunks_of(int64_t rows, const DeltaRuleOptions& options, const char* op) {
  const int64_t length = rows / options.batch;
  const int32_t* segment = nullptr;
  if (options.segments.defined()) {
    check_tensor(options.segments, at::kInt, {rows}, op, "segments");
    segment = options.segments.const_data_ptr<int32_t>();
  }
  Chunks chunks;
  for (int64_t b = 0; b < options.batch; ++b) {
    chunks.first.push_back(static_cast<int64_t>(chunks.all.size()));
    const int64_t end = (b + 1) * length;
    for (int64_t row = b * length; row < end;) {
      int64_t document = row + 1;  // where this one ends
      while (document < end && (segment == nullptr || segment[document] == segment[row])) ++document;
      for (const int64_t begin = row; row < document; row += kDeltaChunk) {
        DeltaChunk chunk{row, std::min(kDeltaChunk, document - row), row == begin, row + kDeltaChunk >= document, -1};
        if (!chunk.first) chunk.state = chunks.states++;
        chunks.all.push_back(chunk);
      }
      row = document;
    }
  }
  chunks.first.push_back(static_cast<int64_t>(chunks.all.size()));
  return chunks;
}

}  // namespace

DeltaRuleOutput delta_rule_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& g,
                                   const at::Tensor& beta, const DeltaRuleOptions& options, bool keep) {
  if (cuda::available(q)) return cuda::table()->delta_rule_forward(q, k, v, g, beta, options, keep);
  const char* op = "delta_rule_forward";
  DeltaCall call = call_of(q, k, v, g, beta, options, op);
  const Chunks chunks = chunks_of(q.size(0), options, op);
  const int64_t width = call.value_heads * call.value_dim;
  DeltaRuleOutput result{at::empty({q.size(0), width}, q.options()), {}, {}};
  if (keep) {
    result.corrections = at::empty({q.size(0), width}, q.options());
    result.states = at::empty({chunks.states, call.value_heads, call.key_padded, call.value_padded}, q.options());
  }
  call.out = result.out.mutable_data_ptr<float>();
  call.kept = mutable_floats_or_null(result.corrections);
  call.states = mutable_floats_or_null(result.states);
  const int64_t tasks = options.batch * call.key_heads;
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t b = task / call.key_heads, first = chunks.first[b];
    simd_delta_forward(call, chunks.all.data() + first, chunks.first[b + 1] - first, task % call.key_heads);
  }
  return result;
}

void delta_rule_backward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const at::Tensor& g, const at::Tensor& beta, const DeltaRuleOutput& forward,
                         const DeltaRuleOptions& options, const at::Tensor& dq, const at::Tensor& dk,
                         const at::Tensor& dv, const at::Tensor& dg, const at::Tensor& dbeta) {
  if (cuda::available(q))
    return cuda::table()->delta_rule_backward(dout, q, k, v, g, beta, forward, options, dq, dk, dv, dg, dbeta);
  const char* op = "delta_rule_backward";
  DeltaCall call = call_of(q, k, v, g, beta, options, op);
  const Chunks chunks = chunks_of(q.size(0), options, op);
  const int64_t width = call.value_heads * call.value_dim;
  check_floats(dout, {q.size(0), width}, op, "dout");
  check_floats(forward.corrections, {q.size(0), width}, op, "corrections");
  check_floats(forward.states, {chunks.states, call.value_heads, call.key_padded, call.value_padded}, op, "states");
  check_floats(dg, g.sizes(), op, "dg");
  check_floats(dbeta, g.sizes(), op, "dbeta");
  for (const auto& [gradient, of, name] : {std::tuple{&dq, &q, "dq"}, {&dk, &k, "dk"}, {&dv, &v, "dv"}}) {
    head_rows(*gradient, op, name);
    if (gradient->sizes() != of->sizes()) {
      throw std::invalid_argument(
          fmt::format("[{}] {}: expected the shape {}, got {}", op, name, of->sizes().vec(), describe(*gradient)));
    }
  }
  // Only read here.
  call.kept = const_cast<float*>(forward.corrections.const_data_ptr<float>());
  call.states = const_cast<float*>(forward.states.const_data_ptr<float>());
  DeltaGradients out;
  out.dout = dout.const_data_ptr<float>();
  out.dq = dq.mutable_data_ptr<float>(), out.dq_stride = dq.stride(0);
  out.dk = dk.mutable_data_ptr<float>(), out.dk_stride = dk.stride(0);
  out.dv = dv.mutable_data_ptr<float>(), out.dv_stride = dv.stride(0);
  out.dg = dg.mutable_data_ptr<float>(), out.dbeta = dbeta.mutable_data_ptr<float>();
  const int64_t tasks = options.batch * call.key_heads;
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t b = task / call.key_heads, first = chunks.first[b];
    simd_delta_backward(call, out, chunks.all.data() + first, chunks.first[b + 1] - first, task % call.key_heads);
  }
}

at::Tensor delta_rule_decode(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& g,
                             const at::Tensor& beta, const at::Tensor& state, const DeltaRuleOptions& options) {
  if (cuda::available(q)) return cuda::table()->delta_rule_decode(q, k, v, g, beta, state, options);
  const char* op = "delta_rule_decode";
  if (options.batch != 1 || options.segments.defined())
    throw std::invalid_argument(fmt::format("[{}] expected one sequence of one document", op));
  DeltaCall call = call_of(q, k, v, g, beta, options, op);
  check_floats(state, {call.value_heads, call.key_dim, call.value_dim}, op, "state");
  const at::Tensor out = at::empty({q.size(0), call.value_heads * call.value_dim}, q.options());
  call.out = out.mutable_data_ptr<float>();
  call.state = state.mutable_data_ptr<float>();
  const int64_t rows = q.size(0);
  if (rows <= kTokenByToken) {
#pragma omp parallel for schedule(static) if (rows * state.numel() >= static_cast <int64_t>(kParallelElements))
    for (int64_t head = 0; head < call.value_heads; ++head) simd_delta_decode(call, rows, head);
  } else {
    const Chunks chunks = chunks_of(rows, options, op);
    const int64_t count = static_cast<int64_t>(chunks.all.size());
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t head = 0; head < call.key_heads; ++head) simd_delta_forward(call, chunks.all.data(), count, head);
  }
  return out;
}

}  // namespace cairn::kernels
