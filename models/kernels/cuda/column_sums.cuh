// Sums over rows, in pieces that follow from the number of rows alone: the gradients of small weights. Never run on a
// GPU so far.
#pragma once

#include "models/kernels/cuda/device.cuh"

namespace cairn::kernels::cuda {

constexpr int kSumColumns = 32, kSumLanes = 8;

// partial[piece][c][k] = the sum over the rows r of a piece of what `terms(r, c, values)` puts into values[0, kSums).
// Thread (c, lane) takes every 8th row from its lane on; the eight are then added in order. Grid: blocks of columns,
// pieces; block (32, 8).
template <int kSums, class Terms>
__device__ inline void sum_piece(int64_t rows, int64_t columns, float* partial, Terms terms) {
  __shared__ float sums[kSumLanes][kSums][kSumColumns];
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kSumColumns + threadIdx.x;
  const int64_t pieces = gridDim.y, piece = blockIdx.y;
  const int64_t begin = piece * rows / pieces, end = (piece + 1) * rows / pieces;
  float sum[kSums] = {}, values[kSums];
  if (c < columns)
    for (int64_t r = begin + threadIdx.y; r < end; r += kSumLanes) {
      terms(r, c, values);
#pragma unroll
      for (int k = 0; k < kSums; ++k) sum[k] += values[k];
    }
#pragma unroll
  for (int k = 0; k < kSums; ++k) sums[threadIdx.y][k][threadIdx.x] = sum[k];
  __syncthreads();
  if (threadIdx.y != 0 || c >= columns) return;
#pragma unroll
  for (int k = 0; k < kSums; ++k) {
    for (int lane = 1; lane < kSumLanes; ++lane) sum[k] += sums[lane][k][threadIdx.x];
    partial[(piece * columns + c) * kSums + k] = sum[k];
  }
}

inline dim3 sum_grid(int64_t rows, int64_t columns) {
  return dim3(blocks(columns, kSumColumns), static_cast<unsigned>(weight_pieces(rows)));
}
inline dim3 sum_block() { return dim3(kSumColumns, kSumLanes); }

// out[c * out_stride] += the sum over the pieces, in order, of partial[piece][c][k].
template <int kUnused = 0>
__global__ void add_partial_kernel(const float* partial, int64_t pieces, int64_t columns, int64_t sums, int64_t k,
                                   float* out, int64_t out_stride) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c >= columns) return;
  float sum = partial[c * sums + k];
  for (int64_t piece = 1; piece < pieces; ++piece) sum += partial[(piece * columns + c) * sums + k];
  out[c * out_stride] += sum;
}

inline void add_partial(const float* partial, int64_t rows, int64_t columns, int64_t sums, int64_t k, float* out,
                        int64_t out_stride, const char* name, Stream stream) {
  launch(add_partial_kernel<>, blocks(columns, 256), 256, 0, stream, partial, weight_pieces(rows), columns, sums, k,
         out, out_stride);
  check_launch(name);
}

}  // namespace cairn::kernels::cuda
