// Depthwise causal convolution with SiLU (models/kernels/causal_conv.h). Never run on a GPU so far.
#include "models/kernels/cuda/activations.cuh"
#include "models/kernels/cuda/column_sums.cuh"
#include "models/kernels/cuda/launchers_delta.h"

namespace cairn::kernels::cuda {
namespace {

constexpr int kConvThreads = 256;

// Rows n - 1 and n are of one document.
__device__ inline bool joined(const CausalConv& job, int64_t n) {
  if (n <= 0) return n > -job.past;
  if (n == job.rows || (n % job.length == 0)) return false;
  return !job.segments || job.segments[n] == job.segments[n - 1];
}

template <class T>
__device__ inline float input(const CausalConv& job, int64_t n, int64_t column) {
  return n >= 0 ? load(static_cast<const T*>(job.x) + n * job.x_stride + column)
                : load(static_cast<const T*>(job.history) + (job.past + n) * job.history_stride + column);
}

// What SiLU is given.
template <class T, class W>
__device__ inline float convolved(const CausalConv& job, int64_t n, int64_t c) {
  const W* weight = static_cast<const W*>(job.weight) + c * job.taps + job.taps - 1;
  const int64_t column = job.column[c];
  float sum = load(weight) * input<T>(job, n, column);
  for (int64_t j = 1; j < job.taps && joined(job, n - j + 1); ++j)
    sum = fmaf(load(weight - j), input<T>(job, n - j, column), sum);
  return sum;
}

template <class T, class W>
__global__ void __launch_bounds__(kConvThreads) conv_kernel(CausalConv job, int64_t row_blocks) {
  const int64_t n = blockIdx.x / row_blocks, c = blockIdx.x % row_blocks * kConvThreads + threadIdx.x;
  if (c >= job.width) return;
  const float sum = convolved<T, W>(job, n, c);
  const int64_t at = n * job.width + c;
  if (job.dy) {
    T* dy = static_cast<T*>(job.dy) + at;
    store(load(dy) * Silu::both(sum).slope, dy);
  } else {
    store(Silu::value(sum), static_cast<T*>(job.y) + at);
  }
}

template <class T, class W>
__global__ void __launch_bounds__(kConvThreads) conv_input_kernel(CausalConv job, int64_t row_blocks) {
  const int64_t n = blockIdx.x / row_blocks, c = blockIdx.x % row_blocks * kConvThreads + threadIdx.x;
  if (c >= job.width) return;
  const W* weight = static_cast<const W*>(job.weight) + c * job.taps + job.taps - 1;
  const T* dy = static_cast<const T*>(job.dy) + n * job.width + c;
  float sum = load(weight) * load(dy);
  for (int64_t j = 1; j < job.taps && joined(job, n + j); ++j)
    sum = fmaf(load(weight - j), load(dy + j * job.width), sum);
  store(sum, static_cast<T*>(job.dx) + n * job.dx_stride + job.column[c]);
}

template <class T>
__global__ void __launch_bounds__(kSumColumns* kSumLanes) conv_weight_kernel(CausalConv job) {
  sum_piece<kConvMaxTaps>(job.rows, job.width, job.partial, [&](int64_t n, int64_t c, float* values) {
    const float d = load(static_cast<const T*>(job.dy) + n * job.width + c);
    bool seen = true;
#pragma unroll
    for (int j = 0; j < kConvMaxTaps; ++j) {
      seen = seen && j < job.taps && (j == 0 || joined(job, n - j + 1));
      values[j] = seen ? d * input<T>(job, n - j, job.column[c]) : 0.0f;
    }
  });
}

template <class F>
void by_both(const CausalConv& job, F f) {
  by_type(job.type, [&](auto t) { by_type(job.weight_type, [&](auto w) { f(t, w); }); });
}

}  // namespace

void causal_conv_forward(const CausalConv& job, Stream stream) {
  if (job.rows == 0 || job.width == 0) return;
  const int64_t row_blocks = (job.width + kConvThreads - 1) / kConvThreads;
  by_both(job, [&](auto t, auto w) {
    launch(conv_kernel<decltype(t), decltype(w)>, blocks(job.rows * row_blocks, 1), kConvThreads, 0, stream, job,
           row_blocks);
  });
  check_launch("causal_conv_forward");
}

void causal_conv_backward(const CausalConv& job, Stream stream) {
  if (job.rows == 0 || job.width == 0) return;
  causal_conv_forward(job, stream);  // dy becomes the gradient of what SiLU was given
  const int64_t row_blocks = (job.width + kConvThreads - 1) / kConvThreads;
  by_both(job, [&](auto t, auto w) {
    launch(conv_input_kernel<decltype(t), decltype(w)>, blocks(job.rows * row_blocks, 1), kConvThreads, 0, stream, job,
           row_blocks);
  });
  check_launch("causal_conv_backward, input");
  if (!job.dweight) return;
  by_type(job.type, [&](auto t) {
    launch(conv_weight_kernel<decltype(t)>, sum_grid(job.rows, job.width), sum_block(), 0, stream, job);
  });
  check_launch("causal_conv_backward, weight");
  for (int64_t j = 0; j < job.taps; ++j)
    add_partial(job.partial, job.rows, job.width, kConvMaxTaps, j, job.dweight + job.taps - 1 - j, job.taps,
                "causal_conv_backward, pieces", stream);
}

}  // namespace cairn::kernels::cuda
