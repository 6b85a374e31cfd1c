// Rotary position embedding in place (models/kernels/rope.h); float32 to the bit as on the CPU. Never run on a GPU so
// far.
#include "models/kernels/cuda/device.cuh"

namespace cairn::kernels::cuda {
namespace {

constexpr int kRopeThreads = 128;

// A block is a row; a thread takes whole pairs, so nothing is read after it was overwritten.
template <class T>
__global__ void __launch_bounds__(kRopeThreads) rope_kernel(Rope job) {
  const int64_t n = blockIdx.x;
  const int64_t position = job.positions[n];
  if (position < 0 || position >= job.table_rows) return;
  const float *cos = job.cos + position * job.half, *sin = job.sin + position * job.half;
  T* x = static_cast<T*>(job.x) + n * job.row_stride;
  const float sign = job.inverse ? -1.0f : 1.0f;
  for (int64_t k = threadIdx.x; k < job.heads * job.half; k += kRopeThreads) {
    const int64_t head = k / job.half, i = k % job.half;
    T* first = x + head * job.head_stride + (job.interleaved ? 2 * i : i);
    T* second = first + (job.interleaved ? 1 : job.half);
    const float a = load(first), b = load(second), c = cos[i], s = sin[i] * sign;
    store(fmaf(-b, s, a * c), first);
    store(fmaf(a, s, b * c), second);
  }
}

}  // namespace

void rope(const Rope& job, Stream stream) {
  if (job.rows == 0 || job.heads == 0 || job.half == 0) return;
  by_type(job.type,
          [&](auto t) { launch(rope_kernel<decltype(t)>, blocks(job.rows, 1), kRopeThreads, 0, stream, job); });
  check_launch("rope");
}

}  // namespace cairn::kernels::cuda
