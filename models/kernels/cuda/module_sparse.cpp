// The CUDA module's entries for sparse attention and its indexer: they check tensors, find memory and launch. Compiled
// into libcairn_cuda.so, not into the program. Never run on a GPU so far.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "models/kernels/cuda/launchers_sparse.h"
#include "models/kernels/cuda/module_checks.h"
#include "models/kernels/cuda/module_parts.h"

namespace cairn::kernels::cuda {
namespace {

constexpr int64_t kWorkspaceFloats = int64_t{128} << 20;  // half a gibibyte; changes no bits

// Rows that go through a pass together, where each takes so many floats of the workspace.
int64_t chunk_of(int64_t rows, int64_t floats_a_row) {
  return std::clamp<int64_t>(kWorkspaceFloats / std::max<int64_t>(floats_a_row, 1), 1, std::max<int64_t>(rows, 1));
}

at::Tensor floats(const at::Tensor& like, at::IntArrayRef shape) {
  return at::empty(shape, like.options().dtype(at::kFloat));
}

// x [N, H, D] whose heads follow one another, on the device and of the type of `like`.
void check_heads(const at::Tensor& x, const at::Tensor& like, const char* op, const char* name) {
  type_of(x, op, name);
  if (x.dim() == 3 && x.device() == like.device() && x.scalar_type() == like.scalar_type() && x.size(2) <= kWidestRow &&
      (x.size(2) <= 1 || x.stride(2) == 1) && (x.size(1) <= 1 || x.stride(1) == x.size(2)))
    return;
  throw std::invalid_argument(
      fmt::format("[{}] {}: expected {} [N, H, D] on {} with contiguous heads of at most {} features, got {}", op, name,
                  c10::toString(like.scalar_type()), like.device().str(), kWidestRow, describe(x)));
}

[[noreturn]] void fail(const char* op, const std::string& why) {
  throw std::invalid_argument(fmt::format("[{}] {}", op, why));
}

int64_t length_of(const at::Tensor& x, int64_t batch, const char* op) {
  if (batch < 1 || x.size(0) % batch != 0)
    fail(op, fmt::format("{} rows are not {} sequences of equal length", x.size(0), batch));
  return x.size(0) / batch;
}

SparseAttention attention_job(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& selected,
                              const AttentionOptions& options, const char* op) {
  check_heads(q, q, op, "q"), check_heads(k, q, op, "k"), check_heads(v, q, op, "v");
  if (q.size(2) != k.size(2) || k.size(1) != v.size(1) || k.size(0) != v.size(0) || k.size(1) == 0 ||
      q.size(1) % k.size(1) != 0)
    fail(op, fmt::format("q {}, k {}, v {}: expected q [N, H, D], k [N, K, D], v [N, K, E] with K dividing H",
                         q.sizes(), k.sizes(), v.sizes()));
  if (options.window > 0 || options.softcap > 0 || options.dropout > 0)
    fail(op, "neither window nor soft-capping nor dropout goes with lists of keys");
  if (!selected.defined() || selected.dim() != 2) fail(op, "selected: expected int32 [N, S]");
  check(selected, q, at::kInt, {q.size(0), selected.size(1)}, op, "selected");
  SparseAttention job;
  job.type = type_of(q, op, "q");
  job.rows = q.size(0), job.heads = q.size(1), job.kv_heads = k.size(1);
  job.key_dim = q.size(2), job.value_dim = v.size(2), job.scale = static_cast<float>(options.scale);
  job.q = q.const_data_ptr(), job.k = k.const_data_ptr(), job.v = v.const_data_ptr();
  job.q_stride = q.stride(0), job.k_stride = k.stride(0), job.v_stride = v.stride(0);
  job.selected = selected.const_data_ptr<int32_t>(), job.width = selected.size(1);
  return job;
}

// Queries and keys are the same rows.
void set_lengths(SparseAttention& job, const at::Tensor& q, const at::Tensor& k, int64_t batch, const char* op) {
  if (q.size(0) != k.size(0)) fail(op, fmt::format("{} queries and {} keys", q.size(0), k.size(0)));
  job.length = job.key_length = length_of(q, batch, op);
}

// [N] first position of each row's segment.
at::Tensor starts_of(const at::Tensor& like, const at::Tensor& segments, int64_t rows, int64_t length, const char* op,
                     Stream stream) {
  const at::Tensor start = at::empty({rows}, like.options().dtype(at::kInt));
  const at::Tensor here = segments.defined() ? segments.to(like.device()).contiguous() : segments;
  if (here.defined()) check(here, like, at::kInt, {rows}, op, "segments");
  segment_starts(here.defined() ? here.const_data_ptr<int32_t>() : nullptr, rows, length,
                 start.mutable_data_ptr<int32_t>(), stream);
  return start;
}

void check_indexer(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const char* op) {
  check_heads(q, q, op, "q");
  for (const auto* x : {&k, &w}) {
    if (x->defined() && x->dim() == 2 && x->device() == q.device() && x->scalar_type() == q.scalar_type() &&
        (x->size(1) <= 1 || x->stride(1) == 1))
      continue;
    fail(op, fmt::format("{}: expected {} on {} with a contiguous last dimension, got {}", x == &k ? "k" : "w",
                         c10::toString(q.scalar_type()), q.device().str(), describe(*x)));
  }
  if (w.size(0) != q.size(0) || w.size(1) != q.size(1) || k.size(1) != q.size(2))
    fail(op,
         fmt::format("q {}, k {}, w {}: expected q [N, J, D], k [N, D], w [N, J]", q.sizes(), k.sizes(), w.sizes()));
}

// `start` is filled by the caller; job.length, key_length and first_position too.
at::Tensor choose(IndexTopk job, const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const at::Tensor& start,
                  const IndexOptions& options, const char* op, Stream stream) {
  if (options.topk < 1 || options.sinks < 0 || options.window < 0 || options.sinks + options.window > options.topk)
    fail(op, fmt::format("topk {}, {} sinks and a window of {}: expected topk of 1 or more that holds the others",
                         options.topk, options.sinks, options.window));
  job.type = type_of(q, op, "q"), job.heads = q.size(1), job.dim = q.size(2);
  job.q = q.const_data_ptr(), job.k = k.const_data_ptr(), job.w = w.const_data_ptr();
  job.q_stride = q.stride(0), job.k_stride = k.stride(0), job.w_stride = w.stride(0);
  job.start = start.const_data_ptr<int32_t>();
  job.topk = options.topk, job.sinks = options.sinks, job.window = options.window;
  const at::Tensor selected = at::empty({q.size(0), std::min(job.topk, job.key_length)}, q.options().dtype(at::kInt));
  job.selected = selected.mutable_data_ptr<int32_t>();
  job.chunk = chunk_of(q.size(0), job.key_length);
  if (job.chunk > 64 && job.chunk < q.size(0)) job.chunk = job.chunk / 64 * 64;  // whole tiles of queries
  const at::Tensor workspace = floats(q, {job.chunk * job.key_length});
  job.workspace = workspace.mutable_data_ptr<float>();
  index_topk(job, stream);
  return selected;
}

AttentionOutput sparse_attention_forward_on(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                            const at::Tensor& selected, const AttentionOptions& options) {
  const char* op = "sparse_attention_forward";
  SparseAttention job = attention_job(q, k, v, selected, options, op);
  set_lengths(job, q, k, options.batch, op);
  const Place place(q);
  AttentionOutput result{at::empty({job.rows, job.heads * job.value_dim}, q.options()),
                         floats(q, {options.batch, job.heads, job.length})};
  job.out = result.out.mutable_data_ptr(), job.lse = result.lse.mutable_data_ptr<float>();
  sparse_attention_forward(job, place.stream);
  return result;
}

void sparse_attention_backward_on(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  const at::Tensor& out, const at::Tensor& lse, const at::Tensor& selected,
                                  const AttentionOptions& options, const at::Tensor& dq, const at::Tensor& dk,
                                  const at::Tensor& dv) {
  const char* op = "sparse_attention_backward";
  SparseAttentionBackward job;
  job.forward = attention_job(q, k, v, selected, options, op);
  SparseAttention& f = job.forward;
  set_lengths(f, q, k, options.batch, op);
  check(dout, q, q.scalar_type(), {f.rows, f.heads * f.value_dim}, op, "dout");
  check(out, q, q.scalar_type(), {f.rows, f.heads * f.value_dim}, op, "out");
  check(lse, q, at::kFloat, {options.batch, f.heads, f.length}, op, "lse");
  check_same(dq, q, op, "dq", "q"), check_same(dk, k, op, "dk", "k"), check_same(dv, v, op, "dv", "v");
  check_heads(dq, q, op, "dq"), check_heads(dk, q, op, "dk"), check_heads(dv, q, op, "dv");
  const Place place(q);
  f.out = const_cast<void*>(out.const_data_ptr()), f.lse = const_cast<float*>(lse.const_data_ptr<float>());
  job.dout = dout.const_data_ptr();
  job.dq = dq.mutable_data_ptr(), job.dk = dk.mutable_data_ptr(), job.dv = dv.mutable_data_ptr();
  job.dq_stride = dq.stride(0), job.dk_stride = dk.stride(0), job.dv_stride = dv.stride(0);
  job.chunk = chunk_of(f.rows, sparse_backward_workspace(f, 1) - sparse_backward_workspace(f, 0));
  const at::Tensor workspace = floats(q, {sparse_backward_workspace(f, job.chunk)});
  job.workspace = workspace.mutable_data_ptr<float>();
  sparse_attention_backward(job, place.stream);
}

at::Tensor sparse_attention_decode_on(const at::Tensor& q, const at::Tensor& cache_k, const at::Tensor& cache_v,
                                      const at::Tensor& selected, int64_t length, const AttentionOptions& options) {
  const char* op = "sparse_attention_decode";
  SparseAttention job = attention_job(q, cache_k, cache_v, selected, options, op);
  if (length < q.size(0) || length > cache_k.size(0))
    fail(op, fmt::format("a context of {} rows does not hold {} new rows or exceeds the cache of {}", length, q.size(0),
                         cache_k.size(0)));
  job.length = std::max<int64_t>(job.rows, 1), job.key_length = length;
  const Place place(q);
  const at::Tensor out = at::empty({job.rows, job.heads * job.value_dim}, q.options());
  job.out = out.mutable_data_ptr();
  sparse_attention_forward(job, place.stream);
  return out;
}

at::Tensor attention_lse_on(const at::Tensor& q, const at::Tensor& k, const AttentionOptions& options) {
  const char* op = "attention_lse";
  check_heads(q, q, op, "q"), check_heads(k, q, op, "k");
  if (options.window > 0 || options.softcap > 0 || options.sinks.defined())
    fail(op, "window, soft-capping and sinks are not supported");
  if (q.size(2) != k.size(2) || k.size(1) == 0 || q.size(1) % k.size(1) != 0 || q.size(0) != k.size(0))
    fail(op, fmt::format("q {}, k {}: expected q [N, H, D], k [N, K, D] with K dividing H", q.sizes(), k.sizes()));
  const int64_t rows = q.size(0), length = length_of(q, options.batch, op);
  const Place place(q);
  const at::Tensor start = starts_of(q, options.segments, rows, length, op, place.stream);
  const int64_t chunk = chunk_of(rows, length);
  const at::Tensor lists = at::empty({chunk, length}, q.options().dtype(at::kInt)),
                   lse = floats(q, {options.batch, q.size(1), length});
  SparseAttention job;
  job.type = type_of(q, op, "q");
  job.length = job.key_length = job.width = length;
  job.heads = q.size(1), job.kv_heads = k.size(1), job.key_dim = q.size(2);
  job.scale = static_cast<float>(options.scale);
  job.q = q.const_data_ptr(), job.k = k.const_data_ptr(), job.q_stride = q.stride(0), job.k_stride = k.stride(0);
  job.selected = lists.const_data_ptr<int32_t>(), job.lse = lse.mutable_data_ptr<float>();
  for (job.begin = 0; job.begin < rows; job.begin += job.rows) {
    job.rows = std::min(chunk, rows - job.begin);
    list_candidates(start.const_data_ptr<int32_t>(), job.begin, job.begin + job.rows, length, length,
                    lists.mutable_data_ptr<int32_t>(), place.stream);
    sparse_attention_forward(job, place.stream);
  }
  return lse;
}

at::Tensor index_topk_on(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const IndexOptions& options) {
  const char* op = "index_topk";
  check_indexer(q, k, w, op);
  IndexTopk job;
  job.sequences = options.batch, job.length = job.key_length = length_of(q, options.batch, op);
  if (k.size(0) != q.size(0)) fail(op, fmt::format("{} queries and {} keys", q.size(0), k.size(0)));
  const Place place(q);
  const at::Tensor start = starts_of(q, options.segments, q.size(0), job.length, op, place.stream);
  return choose(job, q, k, w, start, options, op, place.stream);
}

at::Tensor index_topk_decode_on(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, int64_t length,
                                const IndexOptions& options) {
  const char* op = "index_topk_decode";
  check_indexer(q, k, w, op);
  if (length < q.size(0) || length > k.size(0))
    fail(op, fmt::format("a context of {} rows does not hold {} new rows or exceeds the cache of {}", length, q.size(0),
                         k.size(0)));
  IndexTopk job;
  job.length = q.size(0), job.key_length = length, job.first_position = length - q.size(0);
  const Place place(q);
  const at::Tensor start = at::zeros({q.size(0)}, q.options().dtype(at::kInt));
  return choose(job, q, k, w, start, options, op, place.stream);
}

IndexLoss index_loss_on(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const at::Tensor& selected,
                        const std::vector<MassSource>& sources, const IndexOptions& options, double coefficient) {
  const char* op = "index_loss";
  check_indexer(q, k, w, op);
  IndexLossRun job;
  job.rows = q.size(0), job.length = length_of(q, options.batch, op);
  if (k.size(0) != job.rows) fail(op, fmt::format("{} queries and {} keys", job.rows, k.size(0)));
  if (sources.empty()) fail(op, "there is no attention to learn from");
  std::vector<AttentionMass> masses;
  std::vector<at::Tensor> kept;  // copies that the launches read
  for (const MassSource& s : sources) {
    check_heads(s.q, s.q, op, "source q"), check_heads(s.k, s.q, op, "source k");
    if (s.q.size(0) != job.rows || s.k.size(0) != job.rows || s.q.size(2) != s.k.size(2) || s.k.size(1) == 0 ||
        s.q.size(1) % s.k.size(1) != 0 || s.q.device() != q.device())
      fail(op, fmt::format("source: q {}, k {}: expected [{}, H, D] and [{}, K, D] with K dividing H", s.q.sizes(),
                           s.k.sizes(), job.rows, job.rows));
    const at::Tensor lse = s.lse.to(at::kFloat).contiguous();
    check(lse, q, at::kFloat, {options.batch, s.q.size(1), job.length}, op, "source lse");
    kept.push_back(lse);
    masses.push_back({type_of(s.q, op, "source q"), s.q.size(1), s.k.size(1), s.q.size(2), static_cast<float>(s.scale),
                      s.q.const_data_ptr(), s.k.const_data_ptr(), s.q.stride(0), s.k.stride(0),
                      lse.const_data_ptr<float>()});
  }
  job.sources = masses.data(), job.source_count = static_cast<int64_t>(masses.size());
  job.width = job.length;
  if (selected.defined()) {
    if (selected.dim() != 2) fail(op, "selected: expected int32 [N, S]");
    check(selected, q, at::kInt, {job.rows, selected.size(1)}, op, "selected");
    job.selected = selected.const_data_ptr<int32_t>(), job.width = selected.size(1);
  }
  const bool wants_recall = !selected.defined() && options.topk > 0;

  const Place place(q);
  const at::Tensor start = starts_of(q, options.segments, job.rows, job.length, op, place.stream);
  job.start = start.const_data_ptr<int32_t>();
  job.type = type_of(q, op, "q"), job.heads = q.size(1), job.dim = q.size(2);
  job.q = q.const_data_ptr(), job.k = k.const_data_ptr(), job.w = w.const_data_ptr();
  job.q_stride = q.stride(0), job.k_stride = k.stride(0), job.w_stride = w.stride(0);
  const at::Tensor sums = at::zeros({3, job.rows}, q.options().dtype(at::kFloat));  // kl, recall, best recall
  job.kl = sums.mutable_data_ptr<float>(), job.recall = job.kl + job.rows, job.best_recall = job.recall + job.rows;
  if (wants_recall) job.topk = options.topk, job.sinks = options.sinks, job.window = options.window;
  IndexLoss result;
  job.coefficient = static_cast<float>(coefficient);
  if (coefficient != 0) {
    result.dq = at::empty(q.sizes(), q.options()), result.dk = at::empty(k.sizes(), k.options());
    result.dw = at::empty(w.sizes(), w.options());
    job.dq = result.dq.mutable_data_ptr(), job.dk = result.dk.mutable_data_ptr();
    job.dw = result.dw.mutable_data_ptr();
  }
  job.chunk = chunk_of(job.rows, index_loss_workspace(job, 1) - index_loss_workspace(job, 0));
  const at::Tensor workspace = floats(q, {index_loss_workspace(job, job.chunk)});
  job.workspace = workspace.mutable_data_ptr<float>();
  index_loss(job, place.stream);

  const at::Tensor host = sums.cpu(), host_start = start.cpu();
  const float* row = host.const_data_ptr<float>();
  const int32_t* first = host_start.const_data_ptr<int32_t>();
  for (int64_t n = 0; n < job.rows; ++n) {
    result.kl += row[n];
    result.queries += n % job.length > first[n];
    if (!wants_recall || n % job.length - first[n] < options.topk) continue;
    result.recall += row[job.rows + n], result.best_recall += row[2 * job.rows + n];
    ++result.recall_queries;
  }
  return result;
}

}  // namespace

void add_sparse(Table& table) {
  table.sparse_attention_forward = sparse_attention_forward_on;
  table.sparse_attention_backward = sparse_attention_backward_on;
  table.sparse_attention_decode = sparse_attention_decode_on;
  table.attention_lse = attention_lse_on;
  table.index_topk = index_topk_on;
  table.index_topk_decode = index_topk_decode_on;
  table.index_loss = index_loss_on;
}

}  // namespace cairn::kernels::cuda
