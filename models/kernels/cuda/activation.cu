// Activations and gated units (models/kernels/activation.h), element by element. Never run on a GPU so far.
#include "models/kernels/cuda/activations.cuh"

namespace cairn::kernels::cuda {
namespace {

constexpr int kThreads = 256;

template <class T, class Act>
__global__ void __launch_bounds__(kThreads) gated_kernel(Gated job, int64_t blocks_per_row) {
  const int64_t n = blockIdx.x / blocks_per_row, i = blockIdx.x % blocks_per_row * kThreads + threadIdx.x;
  if (i >= job.columns) return;
  const T* gate = static_cast<const T*>(job.gate_up) + n * job.gate_up_stride;
  const T* up = gate + job.columns;
  T* out = static_cast<T*>(job.out) + n * job.out_stride;
  if (!job.dh) {
    store(Act::value(load(gate + i)) * load(up + i), out + i);
    return;
  }
  const float d = load(static_cast<const T*>(job.dh) + n * job.columns + i), u = load(up + i);
  const Both act = Act::both(load(gate + i));
  store(d * act.value, out + job.columns + i);
  store(d * u * act.slope, out + i);
}

template <class T, class Act>
__global__ void __launch_bounds__(kThreads) activation_kernel(const T* x, const T* dy, T* y, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const float a = load(x + i);
  store(dy ? load(dy + i) * Act::both(a).slope : Act::value(a), y + i);
}

}  // namespace

void gated(const Gated& job, int kind, Stream stream) {
  if (job.rows == 0 || job.columns == 0) return;
  const int64_t blocks_per_row = blocks(job.columns, kThreads);
  by_type(job.type, [&](auto t) {
    by_kind(kind, [&](auto act) {
      launch(gated_kernel<decltype(t), decltype(act)>, static_cast<unsigned>(job.rows * blocks_per_row), kThreads, 0,
             stream, job, blocks_per_row);
    });
  });
  check_launch(job.dh ? "gated_backward" : "gated_forward");
}

void activation(Type type, const void* x, const void* dy, void* y, int64_t n, int kind, Stream stream) {
  if (n == 0) return;
  by_type(type, [&](auto t) {
    using T = decltype(t);
    by_kind(kind, [&](auto act) {
      launch(activation_kernel<T, decltype(act)>, blocks(n, kThreads), kThreads, 0, stream, static_cast<const T*>(x),
             static_cast<const T*>(dy), static_cast<T*>(y), n);
    });
  });
  check_launch(dy ? "activation_backward" : "activation_forward");
}

}  // namespace cairn::kernels::cuda
