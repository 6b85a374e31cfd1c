// What both passes of the gated delta rule share. Of one head, with S [Dk, Dv] the state, a chunk of C rows, G the
// running sum of g inside the chunk:
//   D[i][j] = exp(G[i] - G[j]), gamma[i] = exp(G[i]), kappa[i] = exp(G[C] - G[i])
//   X = (1 + strictly lower(D * K K^T) diag(beta))^-1 (V - diag(gamma) K S),  U = diag(beta) X
//   O = diag(gamma) Q S + lower(D * Q K^T) U
//   S' = exp(G[C]) S + K^T diag(kappa) U
// (the UT transform of Yang et al. 2024). The inverse hangs on the chunk alone. Never run on a GPU so far.
#pragma once

#include "models/kernels/cuda/launchers_delta.h"
#include "models/kernels/cuda/tiles.cuh"

namespace cairn::kernels::cuda {

using ChunkTile = Tile<kDeltaRows, 64>;     // of all chunks at once, 256 threads
using StateTile = Tile<64, kDeltaColumns>;  // of one chunk after another, 128 threads

// [64, 64] in shared memory; the 65th column keeps rows and columns free of bank conflicts.
using Square = float[kDeltaRows][kDeltaRows + 1];

// The decays of one head in one chunk. G is kept in two floats: differences of neighbours stay exact however far the
// sum has run. Past the chunk's rows G stays and beta is 0.
struct Decays {
  float high[kDeltaRows], low[kDeltaRows], gamma[kDeltaRows], kappa[kDeltaRows], beta[kDeltaRows];
  float total;  // exp(G[C])

  // By all threads of the block, at least 64; ends with a barrier.
  __device__ void fill(const DeltaRule& call, const DeltaSpan& span, int64_t head) {
    const int i = threadIdx.x;
    if (i < kDeltaRows) {
      const int64_t at = (span.row + i) * call.value_heads + head;
      high[i] = i < span.rows ? call.g[at] : 0.0f;
      beta[i] = i < span.rows ? call.beta[at] : 0.0f;
    }
    __syncthreads();
    if (i == 0) {
      double sum = 0;
      for (int j = 0; j < kDeltaRows; ++j) {
        sum += static_cast<double>(high[j]);
        high[j] = static_cast<float>(sum);
        low[j] = static_cast<float>(sum - static_cast<double>(high[j]));
      }
    }
    __syncthreads();
    if (i < kDeltaRows) {
      const float e = expf(high[i]);
      gamma[i] = fmaf(e, low[i], e);
      kappa[i] = expf((high[kDeltaRows - 1] - high[i]) + (low[kDeltaRows - 1] - low[i]));
      if (i == kDeltaRows - 1) total = gamma[i];
    }
    __syncthreads();
  }
  // D[i][j], zero above the diagonal.
  __device__ float operator()(int i, int j) const {
    return j <= i ? expf((high[i] - high[j]) + (low[i] - low[j])) : 0.0f;
  }
};

// A chunk's rows of x [N, heads, dim] at one head, times factor[row] where there is one; zeros outside.
template <class T>
struct ChunkRows {
  const T* data;
  int64_t stride, dim;
  const float* factor;
  int64_t factor_stride;
  int rows;

  __device__ ChunkRows(const void* x, int64_t stride, int64_t head, int64_t dim, const DeltaSpan& span)
      : data(static_cast<const T*>(x) + span.row * stride + head * dim),
        stride(stride),
        dim(dim),
        factor(nullptr),
        factor_stride(0),
        rows(span.rows) {}
  __device__ float operator()(int64_t r, int64_t c) const {
    if (r >= rows || c >= dim) return 0.0f;
    const float x = load(data + r * stride + c);
    return factor ? x * factor[r * factor_stride] : x;
  }
};

template <class T>
__device__ inline ChunkRows<T> keys_of(const DeltaRule& call, const DeltaSpan& span, int64_t head) {
  const int64_t key_head = head / (call.value_heads / call.key_heads);
  ChunkRows<T> k(call.k, call.k_stride, key_head, call.key_dim, span);
  k.factor = call.k_factor + span.row * call.key_heads + key_head, k.factor_stride = call.key_heads;
  return k;
}
template <class T>
__device__ inline ChunkRows<T> queries_of(const DeltaRule& call, const DeltaSpan& span, int64_t head) {
  const int64_t key_head = head / (call.value_heads / call.key_heads);
  ChunkRows<T> q(call.q, call.q_stride, key_head, call.key_dim, span);
  q.factor = call.q_factor + span.row * call.key_heads + key_head, q.factor_stride = call.key_heads;
  return q;
}
// Rows of a tensor [N, Hv, dim] that lies in one piece.
template <class T>
__device__ inline ChunkRows<T> rows_of_head(const DeltaRule& call, const void* x, const DeltaSpan& span, int64_t head,
                                            int64_t dim) {
  return ChunkRows<T>(x, call.value_heads * dim, head, dim, span);
}

__device__ inline float* state_of(const DeltaRule& call, float* states, int32_t number, int64_t head) {
  return states + (number * call.value_heads + head) * call.key_dim * call.value_dim;
}

// sums = left right^T over `dim` terms, rows of a chunk against rows of a chunk.
template <class Left, class Right>
__device__ inline void scores(ChunkTile::Shared& shared, int64_t dim, Left left, Right right, ChunkTile::Sums& sums) {
  ChunkTile::clear(sums);
  ChunkTile::add<Along::terms, Along::terms>(
      shared, dim, left, [&](int64_t k, int n) { return right(n, k); }, sums);
}

// inverse = (1 + a)^-1 for a strictly lower [rows, rows]; its own upper part is set to zero. 256 threads; four lanes
// of a warp are a column. Ends with a barrier.
__device__ inline void invert(const Square& a, int rows, Square& inverse) {
  const int column = threadIdx.x / 4, part = threadIdx.x % 4;
  for (int i = 0; i < rows; ++i) {
    float sum = 0;
    for (int l = column + part; l < i; l += 4) sum = fmaf(a[i][l], inverse[l][column], sum);
    sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
    sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 2);
    if (part == 0) inverse[i][column] = i > column ? -sum : (i == column ? 1.0f : 0.0f);
    __syncwarp();
  }
  __syncthreads();
}

// By what each row of q or k is multiplied: scale, divided by its norm where eps > 0. A warp is a row of a key head.
constexpr int kFactorWarps = 8;

template <class T>
__global__ void __launch_bounds__(32 * kFactorWarps)
    delta_factor_kernel(const T* x, int64_t stride, int64_t rows, int64_t heads, int64_t dim, float scale, float eps,
                        float* factor) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kFactorWarps + threadIdx.y;
  if (r >= rows * heads) return;
  const T* from = x + r / heads * stride + r % heads * dim;
  float squares = 0;
  for (int64_t c = threadIdx.x; c < dim; c += 32) squares = fmaf(load(from + c), load(from + c), squares);
  squares = row_sum<32>(squares);
  if (threadIdx.x == 0) factor[r] = eps > 0.0f ? scale / sqrtf(squares + eps) : scale;
}

template <class T>
void delta_factors(const DeltaRule& call, Stream stream) {
  const auto one = [&](const void* x, int64_t stride, float scale, float* factor) {
    launch(delta_factor_kernel<T>, blocks(call.rows * call.key_heads, kFactorWarps), dim3(32, kFactorWarps), 0, stream,
           static_cast<const T*>(x), stride, call.rows, call.key_heads, call.key_dim, scale, call.eps, factor);
  };
  one(call.q, call.q_stride, call.scale, call.q_factor);
  one(call.k, call.k_stride, 1.0f, call.k_factor);
  check_launch("delta_rule, factors");
}

inline bool nothing_of(const DeltaRule& call) {
  return call.rows == 0 || call.value_heads == 0 || call.key_dim == 0 || call.value_dim == 0;
}

inline void check_key_dim(const DeltaRule& call, const char* op) {
  if (call.key_dim > kDeltaMaxKey)
    throw std::invalid_argument(std::string("[") + op + "] k: heads of width " + std::to_string(call.key_dim) +
                                ", expected at most " + std::to_string(kDeltaMaxKey));
}

}  // namespace cairn::kernels::cuda
