// The gated delta rule, forward (formulas in delta.cuh): all chunks solve their systems, the state goes through the
// chunks, all chunks read it. Never run on a GPU so far.
#include "models/kernels/cuda/delta.cuh"

namespace cairn::kernels::cuda {
namespace {

// A block is a chunk of a head. corrections = inverse V, by_key = inverse diag(gamma) K (where a state enters),
// gate = beta kappa, total.
template <class T>
__global__ void __launch_bounds__(ChunkTile::kThreads) solve_kernel(DeltaRule call) {
  __shared__ ChunkTile::Shared shared;
  __shared__ Square a, inverse;
  __shared__ Decays decays;
  const int64_t head = blockIdx.x % call.value_heads, number = blockIdx.x / call.value_heads;
  const DeltaSpan span = call.span[number];
  const ChunkRows<T> k = keys_of<T>(call, span, head);
  ChunkRows<T> v(call.v, call.v_stride, head, call.value_dim, span);
  decays.fill(call, span, head);
  ChunkTile::Sums sums;
  scores(shared, call.key_dim, k, k, sums);
  ChunkTile::each(sums, [&](int i, int j, float kk) { a[i][j] = j < i ? decays(i, j) * kk * decays.beta[j] : 0.0f; });
  __syncthreads();
  invert(a, span.rows, inverse);

  const auto left = [&](int r, int64_t l) { return r < span.rows ? inverse[r][l] : 0.0f; };
  const int64_t value_row = call.value_heads * call.value_dim, key_row = call.value_heads * call.key_dim;
  float* x = call.corrections + span.row * value_row + head * call.value_dim;
  for (int64_t c0 = 0; c0 < call.value_dim; c0 += 64) {
    ChunkTile::clear(sums);
    ChunkTile::add<Along::terms, Along::sums>(
        shared, span.rows, left, [&](int64_t l, int c) { return v(l, c0 + c); }, sums);
    ChunkTile::each(sums, [&](int r, int c, float sum) {
      if (r < span.rows && c0 + c < call.value_dim) x[r * value_row + c0 + c] = sum;
    });
  }
  float* w = call.by_key + span.row * key_row + head * call.key_dim;
  for (int64_t c0 = 0; c0 < call.key_dim && span.enters >= 0; c0 += 64) {
    ChunkTile::clear(sums);
    ChunkTile::add<Along::terms, Along::sums>(
        shared, span.rows, left, [&](int64_t l, int c) { return decays.gamma[l] * k(l, c0 + c); }, sums);
    ChunkTile::each(sums, [&](int r, int c, float sum) {
      if (r < span.rows && c0 + c < call.key_dim) w[r * key_row + c0 + c] = sum;
    });
  }
  const int i = threadIdx.x;
  if (i < span.rows) call.gate[(span.row + i) * call.value_heads + head] = decays.beta[i] * decays.kappa[i];
  if (i == 0) call.total[number * call.value_heads + head] = decays.total;
}

// A block takes some columns of one head's state through the chunks of a sequence: corrections -= by_key S, then
// S' = total S + K^T diag(gate) corrections, which is written down for the next chunk's readers.
template <class T>
__global__ void __launch_bounds__(StateTile::kThreads) state_kernel(DeltaRule call, int64_t column_blocks) {
  __shared__ StateTile::Shared shared;
  __shared__ float state[kDeltaMaxKey][kDeltaColumns];
  const int64_t head = blockIdx.x / column_blocks % call.value_heads;
  const int64_t sequence = blockIdx.x / column_blocks / call.value_heads;
  const int64_t c0 = blockIdx.x % column_blocks * kDeltaColumns, columns = call.value_dim - c0;
  const int64_t value_row = call.value_heads * call.value_dim;
  StateTile::Sums sums;
  bool carried = false;  // the state in shared memory is the one that enters
  for (int64_t number = call.first_span[sequence]; number < call.first_span[sequence + 1]; ++number) {
    const DeltaSpan span = call.span[number];
    const bool enters = span.enters >= 0;
    float* x = call.corrections + span.row * value_row + head * call.value_dim + c0;
    if (enters && !carried) {
      const float* given = state_of(call, call.states, span.enters, head) + c0;
      for (int64_t n = threadIdx.x; n < call.key_dim * kDeltaColumns; n += StateTile::kThreads) {
        const int64_t d = n / kDeltaColumns, c = n % kDeltaColumns;
        state[d][c] = c < columns ? given[d * call.value_dim + c] : 0.0f;
      }
      __syncthreads();
    }
    if (enters) {
      const ChunkRows<float> w = rows_of_head<float>(call, call.by_key, span, head, call.key_dim);
      StateTile::clear(sums);
      StateTile::add<Along::terms, Along::sums>(
          shared, call.key_dim, [&](int r, int64_t d) { return w(r, d); },
          [&](int64_t d, int c) { return state[d][c]; }, sums);
      StateTile::each(sums, [&](int r, int c, float sum) {
        if (r < span.rows && c < columns) x[r * value_row + c] -= sum;
      });
    }
    carried = span.leaves >= 0;
    __syncthreads();  // corrections are written, and nobody reads the old state any more
    if (!carried) continue;
    const ChunkRows<T> k = keys_of<T>(call, span, head);
    const float* gate = call.gate + span.row * call.value_heads + head;
    const float total = call.total[number * call.value_heads + head];
    float* next = state_of(call, call.states, span.leaves, head) + c0;
    for (int64_t d0 = 0; d0 < call.key_dim; d0 += 64) {
      StateTile::clear(sums);
      StateTile::add<Along::sums, Along::sums>(
          shared, span.rows, [&](int d, int64_t r) { return k(r, d0 + d); },
          [&](int64_t r, int c) { return c < columns ? gate[r * call.value_heads] * x[r * value_row + c] : 0.0f; },
          sums);
      StateTile::each(sums, [&](int d, int c, float sum) {
        if (d0 + d >= call.key_dim) return;
        float& s = state[d0 + d][c];
        s = enters ? fmaf(total, s, sum) : sum;
        if (c < columns) next[(d0 + d) * call.value_dim + c] = s;
      });
    }
    __syncthreads();
  }
}

// A block is a chunk of a head: O = diag(gamma) Q S + lower(D * Q K^T) diag(beta) X.
template <class T>
__global__ void __launch_bounds__(ChunkTile::kThreads) output_kernel(DeltaRuleForward job) {
  __shared__ ChunkTile::Shared shared;
  __shared__ Square p;
  __shared__ Decays decays;
  const DeltaRule& call = job.call;
  const int64_t head = blockIdx.x % call.value_heads;
  const DeltaSpan span = call.span[blockIdx.x / call.value_heads];
  const ChunkRows<T> k = keys_of<T>(call, span, head), q = queries_of<T>(call, span, head);
  const ChunkRows<float> x = rows_of_head<float>(call, call.corrections, span, head, call.value_dim);
  decays.fill(call, span, head);
  ChunkTile::Sums sums;
  scores(shared, call.key_dim, q, k, sums);
  ChunkTile::each(sums, [&](int i, int j, float qk) { p[i][j] = decays(i, j) * qk; });
  __syncthreads();
  const int64_t value_row = call.value_heads * call.value_dim;
  T* out = static_cast<T*>(job.out) + span.row * value_row + head * call.value_dim;
  const float* state = span.enters >= 0 ? state_of(call, call.states, span.enters, head) : nullptr;
  for (int64_t c0 = 0; c0 < call.value_dim; c0 += 64) {
    ChunkTile::clear(sums);
    if (state) {
      ChunkTile::add<Along::terms, Along::sums>(
          shared, call.key_dim, [&](int r, int64_t d) { return decays.gamma[r] * q(r, d); },
          [&](int64_t d, int c) { return c0 + c < call.value_dim ? state[d * call.value_dim + c0 + c] : 0.0f; }, sums);
    }
    ChunkTile::add<Along::terms, Along::sums>(
        shared, span.rows, [&](int r, int64_t j) { return p[r][j]; },
        [&](int64_t j, int c) { return decays.beta[j] * x(j, c0 + c); }, sums);
    ChunkTile::each(sums, [&](int r, int c, float sum) {
      if (r < span.rows && c0 + c < call.value_dim) store(sum, out + r * value_row + c0 + c);
    });
  }
}

template <class T>
void forward(const DeltaRuleForward& job, Stream stream) {
  const DeltaRule& call = job.call;
  delta_factors<T>(call, stream);
  const unsigned chunks = blocks(call.spans * call.value_heads, 1);
  launch(solve_kernel<T>, chunks, ChunkTile::kThreads, 0, stream, call);
  check_launch("delta_rule_forward, systems");
  const int64_t column_blocks = (call.value_dim + kDeltaColumns - 1) / kDeltaColumns;
  launch(state_kernel<T>, blocks(call.batch * call.value_heads * column_blocks, 1), StateTile::kThreads, 0, stream,
         call, column_blocks);
  check_launch("delta_rule_forward, states");
  launch(output_kernel<T>, chunks, ChunkTile::kThreads, 0, stream, job);
  check_launch("delta_rule_forward, outputs");
}

}  // namespace

void delta_rule_forward(const DeltaRuleForward& job, Stream stream) {
  check_key_dim(job.call, "delta_rule_forward");
  if (nothing_of(job.call)) return;
  by_type(job.call.type, [&](auto t) { forward<decltype(t)>(job, stream); });
}

}  // namespace cairn::kernels::cuda
