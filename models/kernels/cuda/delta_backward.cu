// The gated delta rule, backward (notation in delta.cuh). dS is the gradient of the state that leaves a chunk and
// becomes that of the one that enters it. With R = diag(beta) (V - diag(gamma) K S), the right side of U's system,
// A = diag(beta) strictly lower(D * K K^T), P = lower(D * Q K^T), M = strictly lower(D * K K^T):
//   dR = (1 + A)^-T (P^T dO + diag(kappa) K dS),  dV = diag(beta) dR,  dbeta = rows of dR * X
//   dP = dO U^T,  dM = -dV U^T
//   dQ = diag(gamma) dO S^T + (D * dP) K
//   dK = -diag(gamma) dV S^T + diag(kappa) U dS^T + (D * dP)^T Q + (D * dM + its transpose) K
//   dS <- exp(G[C]) dS + Q^T diag(gamma) dO - K^T diag(gamma) dV
// What hangs on one chunk alone goes before and after the pass through the states, as in the forward pass. Never run on
// a GPU so far.
#include "models/kernels/cuda/delta.cuh"

namespace cairn::kernels::cuda {
namespace {

// A block is a chunk of a head. dright = (1 + A)^-T P^T dO, by_key = (1 + A)^-T diag(kappa) K (where the state leaves),
// gate = gamma, total.
template <class T>
__global__ void __launch_bounds__(ChunkTile::kThreads) solve_backward_kernel(DeltaRuleBackward job) {
  __shared__ ChunkTile::Shared shared;
  __shared__ Square a, inverse;
  __shared__ Decays decays;
  const DeltaRule& call = job.call;
  const int64_t head = blockIdx.x % call.value_heads, number = blockIdx.x / call.value_heads;
  const DeltaSpan span = call.span[number];
  const ChunkRows<T> k = keys_of<T>(call, span, head), q = queries_of<T>(call, span, head);
  const ChunkRows<T> dout = rows_of_head<T>(call, job.dout, span, head, call.value_dim);
  decays.fill(call, span, head);
  ChunkTile::Sums sums;
  scores(shared, call.key_dim, k, k, sums);
  ChunkTile::each(sums, [&](int i, int j, float kk) { a[i][j] = j < i ? decays(i, j) * kk * decays.beta[i] : 0.0f; });
  __syncthreads();
  invert(a, span.rows, inverse);
  // a becomes P, then P inverse.
  scores(shared, call.key_dim, q, k, sums);
  ChunkTile::each(sums, [&](int i, int j, float qk) { a[i][j] = decays(i, j) * qk; });
  __syncthreads();
  ChunkTile::clear(sums);
  ChunkTile::add<Along::terms, Along::sums>(
      shared, span.rows, [&](int r, int64_t l) { return a[r][l]; },
      [&](int64_t l, int j) { return j < span.rows ? inverse[l][j] : 0.0f; }, sums);
  __syncthreads();
  ChunkTile::each(sums, [&](int i, int j, float sum) { a[i][j] = sum; });
  __syncthreads();

  const int64_t value_row = call.value_heads * call.value_dim, key_row = call.value_heads * call.key_dim;
  float* dright = job.dright + span.row * value_row + head * call.value_dim;
  for (int64_t c0 = 0; c0 < call.value_dim; c0 += 64) {
    ChunkTile::clear(sums);
    ChunkTile::add<Along::sums, Along::sums>(
        shared, span.rows, [&](int r, int64_t i) { return a[i][r]; }, [&](int64_t i, int c) { return dout(i, c0 + c); },
        sums);
    ChunkTile::each(sums, [&](int r, int c, float sum) {
      if (r < span.rows && c0 + c < call.value_dim) dright[r * value_row + c0 + c] = sum;
    });
  }
  float* w = call.by_key + span.row * key_row + head * call.key_dim;
  for (int64_t c0 = 0; c0 < call.key_dim && span.leaves >= 0; c0 += 64) {
    ChunkTile::clear(sums);
    ChunkTile::add<Along::sums, Along::sums>(
        shared, span.rows, [&](int r, int64_t i) { return r < span.rows ? inverse[i][r] : 0.0f; },
        [&](int64_t i, int c) { return decays.kappa[i] * k(i, c0 + c); }, sums);
    ChunkTile::each(sums, [&](int r, int c, float sum) {
      if (r < span.rows && c0 + c < call.key_dim) w[r * key_row + c0 + c] = sum;
    });
  }
  const int i = threadIdx.x;
  if (i < span.rows) call.gate[(span.row + i) * call.value_heads + head] = decays.gamma[i];
  if (i == 0) call.total[number * call.value_heads + head] = decays.total;
}

// As state_kernel, from the last chunk to the first: dright += by_key dS; then dS, which is written down first.
template <class T>
__global__ void __launch_bounds__(StateTile::kThreads)
    state_backward_kernel(DeltaRuleBackward job, int64_t column_blocks) {
  __shared__ StateTile::Shared shared;
  __shared__ float dstate[kDeltaMaxKey][kDeltaColumns];
  const DeltaRule& call = job.call;
  const int64_t head = blockIdx.x / column_blocks % call.value_heads;
  const int64_t sequence = blockIdx.x / column_blocks / call.value_heads;
  const int64_t c0 = blockIdx.x % column_blocks * kDeltaColumns, columns = call.value_dim - c0;
  const int64_t value_row = call.value_heads * call.value_dim;
  StateTile::Sums sums;
  for (int64_t number = call.first_span[sequence + 1] - 1; number >= call.first_span[sequence]; --number) {
    const DeltaSpan span = call.span[number];
    const bool leaves = span.leaves >= 0;
    float* dright = job.dright + span.row * value_row + head * call.value_dim + c0;
    if (leaves) {
      const ChunkRows<float> w = rows_of_head<float>(call, call.by_key, span, head, call.key_dim);
      StateTile::clear(sums);
      StateTile::add<Along::terms, Along::sums>(
          shared, call.key_dim, [&](int r, int64_t d) { return w(r, d); },
          [&](int64_t d, int c) { return dstate[d][c]; }, sums);
      StateTile::each(sums, [&](int r, int c, float sum) {
        if (r < span.rows && c < columns) dright[r * value_row + c] += sum;
      });
    }
    __syncthreads();
    if (span.enters < 0) continue;
    const ChunkRows<T> k = keys_of<T>(call, span, head), q = queries_of<T>(call, span, head);
    const ChunkRows<T> dout = rows_of_head<T>(call, job.dout, span, head, call.value_dim);
    const float* gamma = call.gate + span.row * call.value_heads + head;
    const float* beta = call.beta + span.row * call.value_heads + head;
    const float total = call.total[number * call.value_heads + head];
    float* before = state_of(call, job.dstates, span.enters, head) + c0;
    for (int64_t d0 = 0; d0 < call.key_dim; d0 += 64) {
      StateTile::clear(sums);
      StateTile::add<Along::sums, Along::sums>(
          shared, span.rows, [&](int d, int64_t r) { return q(r, d0 + d); },
          [&](int64_t r, int c) { return gamma[r * call.value_heads] * dout(r, c0 + c); }, sums);
      StateTile::add<Along::sums, Along::sums>(
          shared, span.rows, [&](int d, int64_t r) { return k(r, d0 + d); },
          [&](int64_t r, int c) {
            if (c >= columns) return 0.0f;
            return -gamma[r * call.value_heads] * (beta[r * call.value_heads] * dright[r * value_row + c]);
          },
          sums);
      StateTile::each(sums, [&](int d, int c, float sum) {
        if (d0 + d >= call.key_dim) return;
        float& s = dstate[d0 + d][c];
        s = leaves ? fmaf(total, s, sum) : sum;
        if (c < columns) before[(d0 + d) * call.value_dim + c] = s;
      });
    }
    __syncthreads();
  }
}

// to[row] += the sum over the tile's columns of sums * x(row, column); the 16 threads of a row are half a warp, and the
// first of them alone adds. By all threads.
template <class X>
__device__ inline void add_row_dots(const ChunkTile::Sums& sums, X x, float* to) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float dot = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) dot = fmaf(sums[i][j], x(ChunkTile::row(i), ChunkTile::column(j)), dot);
#pragma unroll
    for (int distance = 8; distance > 0; distance /= 2) dot += __shfl_xor_sync(0xFFFFFFFFu, dot, distance);
    if (threadIdx.x % ChunkTile::kAcross == 0) to[ChunkTile::row(i)] += dot;
  }
}

// A block is a chunk of a head: everything but the sums over the value heads of a key head. by_key becomes dQ.
template <class T>
__global__ void __launch_bounds__(ChunkTile::kThreads) gradient_kernel(DeltaRuleBackward job) {
  __shared__ ChunkTile::Shared shared;
  __shared__ Square dqk, dkk;
  __shared__ Decays decays;
  __shared__ float dgate[kDeltaRows], dkappa[kDeltaRows], columns[kDeltaRows];
  const DeltaRule& call = job.call;
  const int64_t head = blockIdx.x % call.value_heads, Dk = call.key_dim, Dv = call.value_dim;
  const DeltaSpan span = call.span[blockIdx.x / call.value_heads];
  const bool enters = span.enters >= 0, leaves = span.leaves >= 0;
  const ChunkRows<T> k = keys_of<T>(call, span, head), q = queries_of<T>(call, span, head);
  const ChunkRows<T> dout = rows_of_head<T>(call, job.dout, span, head, Dv);
  const ChunkRows<float> x = rows_of_head<float>(call, call.corrections, span, head, Dv);
  const ChunkRows<float> dright = rows_of_head<float>(call, job.dright, span, head, Dv);
  const int thread = threadIdx.x;
  decays.fill(call, span, head);
  const auto u = [&](int r, int64_t c) { return decays.beta[r] * x(r, c); };
  const auto dv = [&](int r, int64_t c) { return decays.beta[r] * dright(r, c); };

  // dbeta and dV; a warp is a row
  for (int r = thread / 32; r < span.rows; r += ChunkTile::kThreads / 32) {
    T* to = static_cast<T*>(job.dv) + (span.row + r) * job.dv_stride + head * Dv;
    float dot = 0;
    for (int64_t c = thread % 32; c < Dv; c += 32) {
      dot = fmaf(dright(r, c), x(r, c), dot);
      store(dv(r, c), to + c);
    }
    dot = row_sum<32>(dot);
    if (thread % 32 == 0) job.dbeta[(span.row + r) * call.value_heads + head] = dot;
  }

  // D * dP and -D * dM with what D owes G: rows minus columns of the products with the scores, the diagonal left out,
  // where D is 1
  ChunkTile::Sums kk, qk, dp, dm;
  scores(shared, Dk, k, k, kk);
  scores(shared, Dk, q, k, qk);
  scores(shared, Dv, dout, u, dp);
  scores(shared, Dv, dv, u, dm);
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int r = ChunkTile::row(i), c = ChunkTile::column(j);
      const float decay = decays(r, c);
      dp[i][j] = decay * dp[i][j];
      dm[i][j] = c < r ? decay * dm[i][j] : 0.0f;
      dqk[r][c] = c < r ? dp[i][j] * qk[i][j] - dm[i][j] * kk[i][j] : 0.0f;
    }
  __syncthreads();
  if (thread < 2 * kDeltaRows) {
    const int n = thread % kDeltaRows;
    float sum = 0;
    for (int l = 0; l < kDeltaRows; ++l) sum += thread < kDeltaRows ? dqk[n][l] : dqk[l][n];
    (thread < kDeltaRows ? dgate : columns)[n] = sum;
  }
  __syncthreads();
  if (thread < kDeltaRows) dgate[thread] -= columns[thread], dkappa[thread] = 0.0f;
  ChunkTile::each(dp, [&](int r, int c, float value) { dqk[r][c] = value; });
  ChunkTile::each(dm, [&](int r, int c, float value) { dkk[r][c] = -value; });
  __syncthreads();

  // dQ and dK
  const float* state = enters ? state_of(call, call.states, span.enters, head) : nullptr;
  const float* dstate = leaves ? state_of(call, job.dstates, span.leaves, head) : nullptr;
  const int64_t at = (span.row * call.value_heads + head) * Dk, key_row = call.value_heads * Dk;
  for (int64_t d0 = 0; d0 < Dk; d0 += 64) {
    const auto of = [&](const float* s) {  // its transpose
      return [=](int64_t c, int d) { return d0 + d < Dk ? s[(d0 + d) * Dv + c] : 0.0f; };
    };
    const auto q_here = [&](int r, int c) { return q(r, d0 + c); };
    const auto k_here = [&](int r, int c) { return k(r, d0 + c); };
    const auto scale_rows = [&](ChunkTile::Sums& sums, const float* by, float sign) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] *= sign * by[ChunkTile::row(i)];
    };
    const auto write = [&](ChunkTile::Sums& sums, float* to) {
      ChunkTile::each(sums, [&](int r, int c, float sum) {
        if (r < span.rows && d0 + c < Dk) to[at + r * key_row + d0 + c] = sum;
      });
    };
    ChunkTile::Sums sums;
    ChunkTile::clear(sums);
    if (enters) {
      ChunkTile::add<Along::terms, Along::terms>(shared, Dv, dout, of(state), sums);
      scale_rows(sums, decays.gamma, 1.0f);
      add_row_dots(sums, q_here, dgate);
    }
    ChunkTile::add<Along::terms, Along::sums>(
        shared, span.rows, [&](int r, int64_t j) { return dqk[r][j]; }, [&](int64_t j, int d) { return k(j, d0 + d); },
        sums);
    write(sums, call.by_key);

    ChunkTile::clear(sums);
    if (leaves) {
      ChunkTile::add<Along::terms, Along::terms>(shared, Dv, u, of(dstate), sums);
      scale_rows(sums, decays.kappa, 1.0f);
      add_row_dots(sums, k_here, dkappa);
    }
    if (enters) {
      ChunkTile::Sums through;
      ChunkTile::clear(through);
      ChunkTile::add<Along::terms, Along::terms>(shared, Dv, dv, of(state), through);
      scale_rows(through, decays.gamma, -1.0f);
      add_row_dots(through, k_here, dgate);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] += through[i][j];
    }
    ChunkTile::add<Along::sums, Along::sums>(
        shared, span.rows, [&](int r, int64_t j) { return dqk[j][r]; }, [&](int64_t j, int d) { return q(j, d0 + d); },
        sums);
    ChunkTile::add<Along::terms, Along::sums>(
        shared, span.rows, [&](int r, int64_t j) { return dkk[r][j] + dkk[j][r]; },
        [&](int64_t j, int d) { return k(j, d0 + d); }, sums);
    write(sums, job.dkeys);
  }

  // dg: what G[i] owes belongs to the g of all rows up to i
  float through_total = 0;
  if (enters && leaves)
    for (int64_t n = thread; n < Dk * Dv; n += ChunkTile::kThreads)
      through_total = fmaf(state[n], dstate[n], through_total);
  through_total = row_sum<ChunkTile::kThreads>(through_total);
  __syncthreads();
  if (thread != 0) return;
  double carried = static_cast<double>(decays.total) * static_cast<double>(through_total);
  for (int r = 0; r < span.rows; ++r) carried += static_cast<double>(dkappa[r]);
  for (int r = span.rows - 1; r >= 0; --r) {
    carried += static_cast<double>(dgate[r]) - static_cast<double>(dkappa[r]);
    job.dg[(span.row + r) * call.value_heads + head] = static_cast<float>(carried);
  }
}

// The gradient of x [N, Hk, Dk], which was used as y = x * factor, from the sum over the value heads of that of y. A
// warp is a row of a key head.
template <class T>
__global__ void __launch_bounds__(32 * kFactorWarps)
    join_heads_kernel(const T* x, int64_t stride, const float* factor, const float* dy, int64_t rows, int64_t heads,
                      int64_t group, int64_t dim, float scale, float eps, T* dx, int64_t dx_stride) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kFactorWarps + threadIdx.y;
  if (r >= rows * heads) return;
  const T* from = x + r / heads * stride + r % heads * dim;
  T* to = dx + r / heads * dx_stride + r % heads * dim;
  const float f = factor[r];
  const auto gradient = [&](int64_t c) {
    float sum = 0;
    for (int64_t i = 0; i < group; ++i) sum += dy[(r * group + i) * dim + c];
    return sum;
  };
  float along = 0;  // y . dy / scale^2: of the unit vectors
  if (eps > 0.0f) {
    for (int64_t c = threadIdx.x; c < dim; c += 32) along = fmaf(load(from + c) * f, gradient(c), along);
    along = row_sum<32>(along) / (scale * scale);
  }
  for (int64_t c = threadIdx.x; c < dim; c += 32) store(f * fmaf(-along, load(from + c) * f, gradient(c)), to + c);
}

template <class T>
void backward(const DeltaRuleBackward& job, Stream stream) {
  const DeltaRule& call = job.call;
  delta_factors<T>(call, stream);
  const unsigned chunks = blocks(call.spans * call.value_heads, 1);
  launch(solve_backward_kernel<T>, chunks, ChunkTile::kThreads, 0, stream, job);
  check_launch("delta_rule_backward, systems");
  const int64_t column_blocks = (call.value_dim + kDeltaColumns - 1) / kDeltaColumns;
  launch(state_backward_kernel<T>, blocks(call.batch * call.value_heads * column_blocks, 1), StateTile::kThreads, 0,
         stream, job, column_blocks);
  check_launch("delta_rule_backward, states");
  launch(gradient_kernel<T>, chunks, ChunkTile::kThreads, 0, stream, job);
  check_launch("delta_rule_backward, gradients");
  const auto join = [&](const void* x, int64_t stride, const float* factor, const float* dy, float scale, void* dx,
                        int64_t dx_stride) {
    launch(join_heads_kernel<T>, blocks(call.rows * call.key_heads, kFactorWarps), dim3(32, kFactorWarps), 0, stream,
           static_cast<const T*>(x), stride, factor, dy, call.rows, call.key_heads, call.value_heads / call.key_heads,
           call.key_dim, scale, call.eps, static_cast<T*>(dx), dx_stride);
  };
  join(call.q, call.q_stride, call.q_factor, call.by_key, call.scale, job.dq, job.dq_stride);
  join(call.k, call.k_stride, call.k_factor, job.dkeys, 1.0f, job.dk, job.dk_stride);
  check_launch("delta_rule_backward, join");
}

}  // namespace

void delta_rule_backward(const DeltaRuleBackward& job, Stream stream) {
  check_key_dim(job.call, "delta_rule_backward");
  if (nothing_of(job.call)) return;
  by_type(job.call.type, [&](auto t) { backward<decltype(t)>(job, stream); });
}

}  // namespace cairn::kernels::cuda
