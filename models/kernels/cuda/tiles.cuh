// Products of tiles through shared memory, float32: what the grouped products of experts and the chunks of the delta
// rule have in common. Never run on a GPU so far.
#pragma once

#include "models/kernels/cuda/device.cuh"

namespace cairn::kernels::cuda {

// What the neighbours in memory of an operand's element are: other terms of the same sum, or the same term of other
// sums. Decides which threads fetch what.
enum class Along { terms, sums };

struct alignas(16) Four {
  float v[4];
};

// kThreads threads (blockDim.x) hold a tile [kRows, kColumns] of a product, kR rows and kC columns each: thread's
// element (i, j) is that of row(i) and column(j).
template <int kRows, int kColumns, int kR = 4, int kC = 4>
struct Tile {
  static constexpr int kTerms = 16;  // that are in shared memory at once
  static constexpr int kAcross = kColumns / kC, kThreads = kRows / kR * kAcross;
  static_assert(kR % 4 == 0 && kC % 4 == 0 && kRows * kTerms % kThreads == 0 && kColumns * kTerms % kThreads == 0);

  struct Shared {  // a fifth column of quads keeps the threads that write a column on different banks
    Four left[kTerms][kRows / 4 + 1], right[kTerms][kColumns / 4 + 1];
  };
  using Sums = float[kR][kC];

  static __device__ int row(int i) { return i / 4 * (kRows / kR * 4) + threadIdx.x / kAcross * 4 + i % 4; }
  static __device__ int column(int j) { return j / 4 * (kAcross * 4) + threadIdx.x % kAcross * 4 + j % 4; }

  static __device__ void clear(Sums& sums) {
#pragma unroll
    for (int i = 0; i < kR; ++i)
#pragma unroll
      for (int j = 0; j < kC; ++j) sums[i][j] = 0.0f;
  }

  // f(row, column, sum) for the thread's elements.
  template <class F>
  static __device__ void each(Sums& sums, F f) {
#pragma unroll
    for (int i = 0; i < kR; ++i)
#pragma unroll
      for (int j = 0; j < kC; ++j) f(row(i), column(j), sums[i][j]);
  }

  // sums[i][j] += the sum over k < terms of left(row, k) * right(k, column), k going up. The operands answer 0 outside
  // of their bounds; what they read in shared memory has to be there for all threads when this is called, and stays
  // until the next __syncthreads. The next terms are fetched while these are multiplied.
  template <Along kLeft, Along kRight, class Left, class Right>
  static __device__ void add(Shared& shared, int64_t terms, Left left, Right right, Sums& sums) {
    constexpr int kLefts = kRows * kTerms / kThreads, kRights = kColumns * kTerms / kThreads;
    const int thread = threadIdx.x;
    float a[kLefts], b[kRights];
    const auto fetch = [&](int64_t first) {
#pragma unroll
      for (int i = 0; i < kLefts; ++i) {
        const int n = thread + i * kThreads;
        const int line = kLeft == Along::terms ? n / kTerms : n % kRows;
        const int64_t k = first + (kLeft == Along::terms ? n % kTerms : n / kRows);
        a[i] = k < terms ? left(line, k) : 0.0f;
      }
#pragma unroll
      for (int i = 0; i < kRights; ++i) {
        const int n = thread + i * kThreads;
        const int line = kRight == Along::terms ? n / kTerms : n % kColumns;
        const int64_t k = first + (kRight == Along::terms ? n % kTerms : n / kColumns);
        b[i] = k < terms ? right(k, line) : 0.0f;
      }
    };
    fetch(0);
    for (int64_t first = 0; first < terms; first += kTerms) {
      __syncthreads();  // everyone is done with the terms before
#pragma unroll
      for (int i = 0; i < kLefts; ++i) {
        const int n = thread + i * kThreads;
        const int line = kLeft == Along::terms ? n / kTerms : n % kRows;
        shared.left[kLeft == Along::terms ? n % kTerms : n / kRows][line / 4].v[line % 4] = a[i];
      }
#pragma unroll
      for (int i = 0; i < kRights; ++i) {
        const int n = thread + i * kThreads;
        const int line = kRight == Along::terms ? n / kTerms : n % kColumns;
        shared.right[kRight == Along::terms ? n % kTerms : n / kColumns][line / 4].v[line % 4] = b[i];
      }
      __syncthreads();
      if (first + kTerms < terms) fetch(first + kTerms);
#pragma unroll
      for (int k = 0; k < kTerms; ++k) {
        Four l[kR / 4], r[kC / 4];
#pragma unroll
        for (int i = 0; i < kR; i += 4) l[i / 4] = shared.left[k][row(i) / 4];
#pragma unroll
        for (int j = 0; j < kC; j += 4) r[j / 4] = shared.right[k][column(j) / 4];
#pragma unroll
        for (int i = 0; i < kR; ++i)
#pragma unroll
          for (int j = 0; j < kC; ++j) sums[i][j] = fmaf(l[i / 4].v[i % 4], r[j / 4].v[j % 4], sums[i][j]);
      }
    }
  }
};

}  // namespace cairn::kernels::cuda
