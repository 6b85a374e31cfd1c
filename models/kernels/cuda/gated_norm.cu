// Gates on what heads give out, with an RMSNorm or without (models/kernels/gated_norm.h), and those of the delta rule
// (models/kernels/delta_gates.h). Never run on a GPU so far.
#include "models/kernels/cuda/activations.cuh"
#include "models/kernels/cuda/column_sums.cuh"
#include "models/kernels/cuda/launchers_delta.h"

namespace cairn::kernels::cuda {
namespace {

constexpr int kGateWarps = 8;  // rows of a block

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// Row r (token and head) of a gate.
__device__ inline int64_t gate_row(const GateStrides& strides, int64_t r, int64_t heads, int64_t columns) {
  const int64_t head = r % heads;
  return r / heads * strides.token + head / strides.group * strides.block + head % strides.group * columns;
}

// A warp is a row.
template <class T, class W>
__global__ void __launch_bounds__(32 * kGateWarps) gated_norm_kernel(GatedNorm job) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kGateWarps + threadIdx.y, columns = job.columns;
  if (r >= job.tokens * job.heads) return;
  const T *x = static_cast<const T*>(job.x) + r * columns,
          *z = static_cast<const T*>(job.z) + gate_row(job.z_strides, r, job.heads, columns);
  T* y = static_cast<T*>(job.y) + r * columns;
  const W* weight = static_cast<const W*>(job.weight);
  if (!weight) {
    for (int64_t i = threadIdx.x; i < columns; i += 32) store(load(x + i) * sigmoid(load(z + i)), y + i);
    return;
  }
  float squares = 0;
  for (int64_t i = threadIdx.x; i < columns; i += 32) squares = fmaf(load(x + i), load(x + i), squares);
  const float rstd = 1.0f / sqrtf(row_sum<32>(squares) * (1.0f / static_cast<float>(columns)) + job.eps);
  if (threadIdx.x == 0) job.rstd[r] = rstd;
  for (int64_t i = threadIdx.x; i < columns; i += 32)
    store(load(x + i) * rstd * load(weight + i) * Silu::value(load(z + i)), y + i);
}

// With n = x * rstd and h = dy * weight * silu(z):  dx = rstd * (h - n * mean(h * n)),  dz = dy * weight * n *
// silu'(z).
template <class T, class W>
__global__ void __launch_bounds__(32 * kGateWarps) gated_norm_backward_kernel(GatedNorm job) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kGateWarps + threadIdx.y, columns = job.columns;
  if (r >= job.tokens * job.heads) return;
  const T *x = static_cast<const T*>(job.x) + r * columns, *dy = static_cast<const T*>(job.dy) + r * columns,
          *z = static_cast<const T*>(job.z) + gate_row(job.z_strides, r, job.heads, columns);
  T *dx = static_cast<T*>(job.dx) + r * columns,
    *dz = static_cast<T*>(job.dz) + gate_row(job.dz_strides, r, job.heads, columns);
  const W* weight = static_cast<const W*>(job.weight);
  // An element is read and written by the same thread, so dx may be dy.
  if (!weight) {
    for (int64_t i = threadIdx.x; i < columns; i += 32) {
      const float d = load(dy + i), s = sigmoid(load(z + i));
      store(d * load(x + i) * s * (1.0f - s), dz + i);
      store(d * s, dx + i);
    }
    return;
  }
  const float rstd = job.rstd[r];
  float dot = 0;
  for (int64_t i = threadIdx.x; i < columns; i += 32)
    dot = fmaf(load(dy + i) * load(weight + i) * Silu::value(load(z + i)), load(x + i) * rstd, dot);
  const float mean = row_sum<32>(dot) * (1.0f / static_cast<float>(columns));
  for (int64_t i = threadIdx.x; i < columns; i += 32) {
    const float n = load(x + i) * rstd, d = load(dy + i) * load(weight + i);
    const Both gate = Silu::both(load(z + i));
    store(d * n * gate.slope, dz + i);
    store(rstd * fmaf(-n, mean, d * gate.value), dx + i);
  }
}

template <class T>
__global__ void __launch_bounds__(kSumColumns* kSumLanes) gated_norm_weight_kernel(GatedNorm job) {
  sum_piece<1>(job.tokens * job.heads, job.columns, job.partial, [&](int64_t r, int64_t c, float* values) {
    const float z = load(static_cast<const T*>(job.z) + gate_row(job.z_strides, r, job.heads, job.columns) + c);
    const int64_t at = r * job.columns + c;
    values[0] = load(static_cast<const T*>(job.dy) + at) * (load(static_cast<const T*>(job.x) + at) * job.rstd[r]) *
                Silu::value(z);
  });
}

// ---- beta = sigmoid(b), g = -exp(A_log) softplus(a + dt_bias)

constexpr int kGatesThreads = 256;

// Where b of a row's head lies; a is `group` further.
__device__ inline int64_t b_of(int64_t row, int64_t head, int64_t stride, int64_t group) {
  return row * stride + head / group * 2 * group + head % group;
}

template <class T, class W>
__global__ void __launch_bounds__(kGatesThreads) delta_gates_kernel(DeltaGates job) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kGatesThreads + threadIdx.x;
  if (i >= job.rows * job.heads) return;
  const int64_t head = i % job.heads, group = job.heads / job.key_heads;
  const T* b = static_cast<const T*>(job.ba) + b_of(i / job.heads, head, job.ba_stride, group);
  const float a = load(b + group) + load(static_cast<const W*>(job.dt_bias) + head);
  const float decay = expf(load(static_cast<const W*>(job.A_log) + head));
  if (!job.dba) {
    job.beta[i] = sigmoid(load(b));
    job.g[i] = -decay * (a > 0.0f ? a + log1pf(expf(-a)) : log1pf(expf(a)));
    return;
  }
  T* db = static_cast<T*>(job.dba) + b_of(i / job.heads, head, job.dba_stride, group);
  const float beta = job.beta[i];
  store(job.dbeta[i] * beta * (1.0f - beta), db);
  store(-job.dg[i] * decay * sigmoid(a), db + group);
}

template <class T, class W>
__global__ void __launch_bounds__(kSumColumns* kSumLanes) delta_gates_weight_kernel(DeltaGates job) {
  const int64_t group = job.heads / job.key_heads;
  sum_piece<2>(job.rows, job.heads, job.partial, [&](int64_t r, int64_t head, float* values) {
    const T* b = static_cast<const T*>(job.ba) + b_of(r, head, job.ba_stride, group);
    const float a = load(b + group) + load(static_cast<const W*>(job.dt_bias) + head);
    const float dg = job.dg[r * job.heads + head];
    values[0] = dg * job.g[r * job.heads + head];
    values[1] = -dg * expf(load(static_cast<const W*>(job.A_log) + head)) * sigmoid(a);
  });
}

template <class Job, class F>
void by_types(const Job& job, F f) {
  by_type(job.type, [&](auto t) { by_type(job.weight_type, [&](auto w) { f(t, w); }); });
}

void start_gates(const DeltaGates& job, const char* name, Stream stream) {
  by_types(job, [&](auto t, auto w) {
    launch(delta_gates_kernel<decltype(t), decltype(w)>, blocks(job.rows * job.heads, kGatesThreads), kGatesThreads, 0,
           stream, job);
  });
  check_launch(name);
}

}  // namespace

void gated_norm_forward(const GatedNorm& job, Stream stream) {
  const int64_t rows = job.tokens * job.heads;
  if (rows == 0 || job.columns == 0) return;
  by_types(job, [&](auto t, auto w) {
    launch(gated_norm_kernel<decltype(t), decltype(w)>, blocks(rows, kGateWarps), dim3(32, kGateWarps), 0, stream, job);
  });
  check_launch("gated_norm_forward");
}

void gated_norm_backward(const GatedNorm& job, Stream stream) {
  const int64_t rows = job.tokens * job.heads;
  if (rows == 0 || job.columns == 0) return;
  if (job.dweight) {  // before the pass that may overwrite dy
    by_type(job.type, [&](auto t) {
      launch(gated_norm_weight_kernel<decltype(t)>, sum_grid(rows, job.columns), sum_block(), 0, stream, job);
    });
    check_launch("gated_norm_backward, weight");
    add_partial(job.partial, rows, job.columns, 1, 0, job.dweight, 1, "gated_norm_backward, pieces", stream);
  }
  by_types(job, [&](auto t, auto w) {
    launch(gated_norm_backward_kernel<decltype(t), decltype(w)>, blocks(rows, kGateWarps), dim3(32, kGateWarps), 0,
           stream, job);
  });
  check_launch("gated_norm_backward");
}

void delta_gates_forward(const DeltaGates& job, Stream stream) {
  if (job.rows > 0 && job.heads > 0) start_gates(job, "delta_gates_forward", stream);
}

void delta_gates_backward(const DeltaGates& job, Stream stream) {
  if (job.rows == 0 || job.heads == 0) return;
  start_gates(job, "delta_gates_backward", stream);
  if (!job.dA_log && !job.ddt_bias) return;
  by_types(job, [&](auto t, auto w) {
    launch(delta_gates_weight_kernel<decltype(t), decltype(w)>, sum_grid(job.rows, job.heads), sum_block(), 0, stream,
           job);
  });
  check_launch("delta_gates_backward, weights");
  const char* name = "delta_gates_backward, pieces";
  if (job.dA_log) add_partial(job.partial, job.rows, job.heads, 2, 0, job.dA_log, 1, name, stream);
  if (job.ddt_bias) add_partial(job.partial, job.rows, job.heads, 2, 1, job.ddt_bias, 1, name, stream);
}

}  // namespace cairn::kernels::cuda
