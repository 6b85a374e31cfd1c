// Passes over flat memory: AdamW and sums of squares. Fused multiply-adds stand where the CPU's vector code has them,
// and nothing else is contracted (-fmad=false), so both give the CPU's bits. Never run on a GPU so far.
#include "models/kernels/cuda/device.cuh"

namespace cairn::kernels::cuda {
namespace {

constexpr int kFlatThreads = 256;

template <class P>
__global__ void __launch_bounds__(kFlatThreads) adamw_kernel(AdamwRun run, AdamwScalars s) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kFlatThreads + threadIdx.x;
  if (i >= run.n) return;
  const float g = run.g[i] * s.grad_scale;
  float m = run.m[i], v = run.v[i];
  m = fmaf(s.one_minus_beta1, g - m, m);
  v = fmaf(s.one_minus_beta2 * g, g, s.beta2 * v);
  const float denominator = fmaf(sqrtf(v), s.inv_sqrt_correction2, s.eps);
  P* p = static_cast<P*>(run.p) + i;
  store(fmaf(-s.step_size, m / denominator, run.decay * load(p)), p);
  run.m[i] = m;
  run.v[i] = v;
  if (s.clear_grad) run.g[i] = 0.0f;
}

// Sixteen threads a piece, one a lane; the squares of float32 values are exact in double.
constexpr int kLanes = 16;

__global__ void __launch_bounds__(kFlatThreads)
    squared_norm_kernel(const float* x, int64_t n, int64_t piece, double* out, int64_t pieces) {
  const int lane = threadIdx.x % kLanes;
  const int64_t k = (static_cast<int64_t>(blockIdx.x) * kFlatThreads + threadIdx.x) / kLanes;
  const int64_t begin = k * piece, end = begin + piece < n ? begin + piece : n;
  double sum = 0;
#pragma unroll 8
  for (int64_t i = begin + lane; i < end; i += kLanes)
    sum = fma(static_cast<double>(x[i]), static_cast<double>(x[i]), sum);
  // Lane 0 ends with ((0 1)(2 3))..., the tree of the CPU; what other lanes hold does not count. Pieces beyond the last
  // add nothing and stay for the shuffle.
  for (int stride = 1; stride < kLanes; stride *= 2) sum += __shfl_down_sync(0xFFFFFFFFu, sum, stride, kLanes);
  if (lane == 0 && k < pieces) out[k] = sum;
}

}  // namespace

void adamw(const AdamwRun& run, const AdamwScalars& scalars, Stream stream) {
  if (run.n == 0) return;
  by_type(run.type, [&](auto p) {
    launch(adamw_kernel<decltype(p)>, blocks(run.n, kFlatThreads), kFlatThreads, 0, stream, run, scalars);
  });
  check_launch("adamw");
}

void squared_norm_pieces(const float* x, int64_t n, int64_t piece, double* out, Stream stream) {
  if (n == 0) return;
  const int64_t pieces = (n + piece - 1) / piece;
  launch(squared_norm_kernel, blocks(pieces * kLanes, kFlatThreads), kFlatThreads, 0, stream, x, n, piece, out, pieces);
  check_launch("squared_norm_pieces");
}

}  // namespace cairn::kernels::cuda
