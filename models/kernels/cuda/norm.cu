// RMSNorm with the residual addition before it (models/kernels/norm.h). Never run on a GPU so far.
#include "models/kernels/cuda/device.cuh"

namespace cairn::kernels::cuda {
namespace {

// Narrow rows (heads of QK-norm) take a warp each, several to a block; wide ones a block.
constexpr int kNarrowColumns = 512, kWarpsPerBlock = 8, kWideThreads = 256;

template <int kThreads>
__device__ inline int64_t row_of_thread() {
  return kThreads == 32 ? static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y
                        : static_cast<int64_t>(blockIdx.x);
}

template <class T, class W, int kThreads>
__global__ void __launch_bounds__(256) forward_kernel(RmsNormForward job) {
  const int64_t r = row_of_thread<kThreads>(), columns = job.columns;
  if (r >= job.rows) return;  // a whole warp or a whole block
  const T* s = row<const T>(job.x, r);
  float squares = 0;
  if (job.residual) {
    const T *x = s, *residual = static_cast<const T*>(job.residual) + r * columns;
    T* sum = static_cast<T*>(job.sum) + r * columns;
    for (int64_t i = threadIdx.x; i < columns; i += kThreads) {
      store(load(x + i) + load(residual + i), sum + i);
      const float a = load(sum + i);
      squares = fmaf(a, a, squares);
    }
    s = sum;  // each thread reads back what it wrote itself
  } else {
    for (int64_t i = threadIdx.x; i < columns; i += kThreads) {
      const float a = load(s + i);
      squares = fmaf(a, a, squares);
    }
  }
  const float scale = 1.0f / static_cast<float>(columns);
  const float rstd = 1.0f / sqrtf(row_sum<kThreads>(squares) * scale + job.eps);
  if (threadIdx.x == 0) job.rstd[r] = rstd;
  T* y = static_cast<T*>(job.y) + r * columns;
  const W* weight = static_cast<const W*>(job.weight);
  for (int64_t i = threadIdx.x; i < columns; i += kThreads)
    store(load(s + i) * rstd * (load(weight + i) + job.offset), y + i);
}

// With n = s * rstd and g = dy * w:  ds = rstd * (g - n * mean(g * n)).
template <class T, class W, int kThreads>
__global__ void __launch_bounds__(256) backward_kernel(RmsNormBackward job) {
  const int64_t r = row_of_thread<kThreads>(), columns = job.columns;
  if (r >= job.rows) return;
  const T *dy = row<const T>(job.dy, r), *s = row<const T>(job.sum, r);
  const W* weight = static_cast<const W*>(job.weight);
  const float rstd = job.rstd[r];
  float dot = 0;
  for (int64_t i = threadIdx.x; i < columns; i += kThreads)
    dot = fmaf(load(dy + i) * (load(s + i) * rstd), load(weight + i) + job.offset, dot);
  const float b = row_sum<kThreads>(dot) * (1.0f / static_cast<float>(columns));
  // An element is read and written by the same thread, so `out` may be dy.
  T* out = row<T>(job.out, r);
  const T* dsum = job.dsum ? static_cast<const T*>(job.dsum) + r * columns : nullptr;
  for (int64_t i = threadIdx.x; i < columns; i += kThreads) {
    const float n = load(s + i) * rstd;
    const float g = fmaf(-n, b, load(dy + i) * (load(weight + i) + job.offset));
    store(dsum ? fmaf(g, rstd, load(dsum + i)) : g * rstd, out + i);
  }
}

// partial[piece][c] = sum over the rows of the piece of dy * s * rstd. Thread (c, k) takes every 8th row from the k-th
// on; the eight are then added in order.
constexpr int kColumns = 32, kRowLanes = 8;

template <class T>
__global__ void __launch_bounds__(kColumns* kRowLanes) weight_kernel(RmsNormBackward job) {
  __shared__ float sums[kRowLanes][kColumns];
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kColumns + threadIdx.x;
  const int64_t pieces = gridDim.y, piece = blockIdx.y;
  const int64_t begin = piece * job.rows / pieces, end = (piece + 1) * job.rows / pieces;
  float sum = 0;
  if (c < job.columns)
    for (int64_t r = begin + threadIdx.y; r < end; r += kRowLanes)
      sum += load(row<const T>(job.dy, r) + c) * (load(row<const T>(job.sum, r) + c) * job.rstd[r]);
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || c >= job.columns) return;
  for (int k = 1; k < kRowLanes; ++k) sum += sums[k][threadIdx.x];
  job.partial[piece * job.columns + c] = sum;
}

__global__ void add_pieces_kernel(const float* partial, int64_t pieces, int64_t columns, float* dweight) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c >= columns) return;
  float sum = partial[c];
  for (int64_t piece = 1; piece < pieces; ++piece) sum += partial[piece * columns + c];
  dweight[c] += sum;
}

}  // namespace

void rms_norm_forward(const RmsNormForward& job, Stream stream) {
  if (job.rows == 0 || job.columns == 0) return;
  by_type(job.type, [&](auto t) {
    by_type(job.weight_type, [&](auto w) {
      using T = decltype(t);
      using W = decltype(w);
      if (job.columns <= kNarrowColumns)
        launch(forward_kernel<T, W, 32>, blocks(job.rows, kWarpsPerBlock), dim3(32, kWarpsPerBlock), 0, stream, job);
      else
        launch(forward_kernel<T, W, kWideThreads>, blocks(job.rows, 1), kWideThreads, 0, stream, job);
    });
  });
  check_launch("rms_norm_forward");
}

void rms_norm_backward(const RmsNormBackward& job, Stream stream) {
  if (job.rows == 0 || job.columns == 0) return;
  if (job.dweight) {  // before the pass that may overwrite dy
    const int64_t pieces = weight_pieces(job.rows);
    const dim3 grid(blocks(job.columns, kColumns), static_cast<unsigned>(pieces)), block(kColumns, kRowLanes);
    by_type(job.type, [&](auto t) { launch(weight_kernel<decltype(t)>, grid, block, 0, stream, job); });
    check_launch("rms_norm_backward, weight");
    launch(add_pieces_kernel, blocks(job.columns, 256), 256, 0, stream, job.partial, pieces, job.columns, job.dweight);
    check_launch("rms_norm_backward, pieces");
  }
  by_type(job.type, [&](auto t) {
    by_type(job.weight_type, [&](auto w) {
      using T = decltype(t);
      using W = decltype(w);
      if (job.columns <= kNarrowColumns)
        launch(backward_kernel<T, W, 32>, blocks(job.rows, kWarpsPerBlock), dim3(32, kWarpsPerBlock), 0, stream, job);
      else
        launch(backward_kernel<T, W, kWideThreads>, blocks(job.rows, 1), kWideThreads, 0, stream, job);
    });
  });
  check_launch("rms_norm_backward");
}

}  // namespace cairn::kernels::cuda
