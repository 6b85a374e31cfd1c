// A gated feed-forward by expert (models/kernels/grouped_linear.h): products of the sorted rows tile by tile, the gate
// between them, and the join of the slots. Rows are gathered where they are read. Never run on a GPU so far.
#include "models/kernels/cuda/activations.cuh"
#include "models/kernels/cuda/launchers_experts.h"
#include "models/kernels/cuda/tiles.cuh"

namespace cairn::kernels::cuda {
namespace {

using ProductTile = Tile<kExpertTile, 128, 4, 8>;
constexpr int kGateThreads = 256;

// A weight of type W as one of the rows' type T: bf16-mixed multiplies rounded master weights.
template <class T, class W>
__device__ inline float weight_as(const W* w) {
  if constexpr (sizeof(T) < sizeof(W)) {
    T rounded;
    store(load(w), &rounded);
    return load(&rounded);
  } else {
    return load(w);
  }
}

// ---- products by row: out[r, n] = sum over k of left[r, k] * right_e[n, k] (or right_e[k, n]) + bias_e[n]

struct RowProduct {
  const void* left = nullptr;  // a row for each row, or for each token where `pair` says whose a row is
  const int32_t* pair = nullptr;
  int64_t slots = 1;
  const void *right = nullptr, *bias = nullptr;  // of expert e at e * columns * terms; e * columns
  void* out = nullptr;                           // [rows, columns]
  int64_t terms = 0, columns = 0, column_blocks = 0;
  const ExpertTile* tiles = nullptr;
};

template <class T, class W, class Out, Along kRight>
__global__ void __launch_bounds__(ProductTile::kThreads, 2) row_product_kernel(RowProduct job) {
  __shared__ ProductTile::Shared shared;
  __shared__ int32_t source[kExpertTile];  // row of `left`
  const ExpertTile tile = job.tiles[blockIdx.x / job.column_blocks];
  if (tile.rows == 0) return;
  if (threadIdx.x < tile.rows) {
    const int64_t r = tile.first + threadIdx.x;
    source[threadIdx.x] = static_cast<int32_t>(job.pair ? job.pair[r] / job.slots : r);
  }
  __syncthreads();
  const int64_t first = blockIdx.x % job.column_blocks * 128, columns = job.columns - first;
  const int64_t right_stride = kRight == Along::terms ? job.terms : job.columns;
  const T* left = static_cast<const T*>(job.left);
  const W* right = static_cast<const W*>(job.right) + tile.expert * job.columns * job.terms +
                   (kRight == Along::terms ? first * right_stride : first);
  ProductTile::Sums sums;
  ProductTile::clear(sums);
  ProductTile::add<Along::terms, kRight>(
      shared, job.terms,
      [&](int r, int64_t k) { return r < tile.rows ? load(left + source[r] * job.terms + k) : 0.0f; },
      [&](int64_t k, int n) {
        if (n >= columns) return 0.0f;
        return weight_as<T>(right + (kRight == Along::terms ? n * right_stride + k : k * right_stride + n));
      },
      sums);
  const W* bias = job.bias ? static_cast<const W*>(job.bias) + tile.expert * job.columns + first : nullptr;
  Out* out = static_cast<Out*>(job.out) + tile.first * job.columns + first;
  ProductTile::each(sums, [&](int r, int n, float sum) {
    if (r < tile.rows && n < columns) store(bias ? sum + weight_as<T>(bias + n) : sum, out + r * job.columns + n);
  });
}

template <class T, class W, class Out, Along kRight>
void row_product(RowProduct job, int64_t tiles, Stream stream, const char* name) {
  job.column_blocks = (job.columns + 127) / 128;
  launch(row_product_kernel<T, W, Out, kRight>, blocks(tiles * job.column_blocks, 1), ProductTile::kThreads, 0, stream,
         job);
  check_launch(name);
}

// ---- gradients of the weights: out_e[m, n] += sum over the rows r of e of left[r, m] * right[r, n], r going up

struct WeightProduct {
  const void *left = nullptr, *right = nullptr;  // [rows, width], or a row for each token where a `pair` is
  const int32_t *left_pair = nullptr, *right_pair = nullptr, *first = nullptr;
  int64_t slots = 1, rows = 0, columns = 0, row_blocks = 0, column_blocks = 0;
  float* out = nullptr;  // [E * rows, columns]
};

template <class L, class R>
__global__ void __launch_bounds__(ProductTile::kThreads, 2) weight_product_kernel(WeightProduct job) {
  __shared__ ProductTile::Shared shared;
  const int64_t blocks_each = job.row_blocks * job.column_blocks, expert = blockIdx.x / blocks_each;
  const int64_t block = blockIdx.x % blocks_each;
  const int64_t m0 = block / job.column_blocks * kExpertTile, n0 = block % job.column_blocks * 128;
  const int64_t begin = job.first[expert], count = job.first[expert + 1] - begin;
  if (count == 0) return;
  const L* left = static_cast<const L*>(job.left) + m0;
  const R* right = static_cast<const R*>(job.right) + n0;
  const int64_t rows = job.rows - m0, columns = job.columns - n0;
  ProductTile::Sums sums;
  ProductTile::clear(sums);
  ProductTile::add<Along::sums, Along::sums>(
      shared, count,
      [&](int m, int64_t k) {
        if (m >= rows) return 0.0f;
        const int64_t r = job.left_pair ? job.left_pair[begin + k] / job.slots : begin + k;
        return load(left + r * job.rows + m);
      },
      [&](int64_t k, int n) {
        if (n >= columns) return 0.0f;
        const int64_t r = job.right_pair ? job.right_pair[begin + k] / job.slots : begin + k;
        return load(right + r * job.columns + n);
      },
      sums);
  float* out = job.out + (expert * job.rows + m0) * job.columns + n0;
  ProductTile::each(sums, [&](int m, int n, float sum) {
    if (m < rows && n < columns) out[m * job.columns + n] += sum;
  });
}

template <class L, class R>
void weight_product(WeightProduct job, int64_t experts, Stream stream, const char* name) {
  job.row_blocks = (job.rows + kExpertTile - 1) / kExpertTile, job.column_blocks = (job.columns + 127) / 128;
  launch(weight_product_kernel<L, R>, blocks(experts * job.row_blocks * job.column_blocks, 1), ProductTile::kThreads, 0,
         stream, job);
  check_launch(name);
}

// Gradients of the biases: out_e[c] += sum over the rows of e, weighted where `weights` is. Thread (c, k) takes every
// 8th row from the k-th on; the eight are then added in order.
constexpr int kBiasColumns = 32, kBiasLanes = 8;

template <class T>
__global__ void __launch_bounds__(kBiasColumns* kBiasLanes)
    bias_kernel(const T* rows, const int32_t* pair, const float* weights, int64_t slots, const int32_t* first,
                int64_t columns, int64_t column_blocks, float* out) {
  __shared__ float sums[kBiasLanes][kBiasColumns];
  const int64_t expert = blockIdx.x / column_blocks;
  const int64_t c = blockIdx.x % column_blocks * kBiasColumns + threadIdx.x;
  float sum = 0;
  if (c < columns)
    for (int64_t r = first[expert] + threadIdx.y; r < first[expert + 1]; r += kBiasLanes)
      sum += weights ? weights[pair[r]] * load(rows + pair[r] / slots * columns + c) : load(rows + r * columns + c);
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || c >= columns) return;
  for (int k = 1; k < kBiasLanes; ++k) sum += sums[k][threadIdx.x];
  out[expert * columns + c] += sum;
}

template <class T>
void bias_gradient(const ExpertsCall& call, const void* rows, const float* weights, int64_t columns, float* out,
                   Stream stream) {
  const int64_t column_blocks = (columns + kBiasColumns - 1) / kBiasColumns;
  launch(bias_kernel<T>, blocks(call.experts * column_blocks, 1), dim3(kBiasColumns, kBiasLanes), 0, stream,
         static_cast<const T*>(rows), call.pair, weights, call.slots, call.first, columns, column_blocks, out);
  check_launch("experts_backward, biases");
}

// ---- gates

struct Gradients {
  float value, gate, up;  // of gate and up
};

template <class Act>
struct PlainGate {
  __device__ float value(float gate, float up) const { return Act::value(gate) * up; }
  __device__ Gradients both(float gate, float up) const {
    const Both act = Act::both(gate);
    return {act.value * up, up * act.slope, act.value};
  }
};

// (up + 1) * gate * sigmoid(alpha * gate), gate <= limit, |up| <= limit (gpt-oss). NaN passes.
struct ClampedGate {
  float alpha, limit;
  __device__ float below(float x) const { return x > limit ? limit : x; }
  __device__ float value(float gate, float up) const {
    const float g = below(gate), u = up < -limit ? -limit : below(up);
    return (u + 1.0f) * (g / (1.0f + exponential(-alpha * g)));
  }
  __device__ Gradients both(float gate, float up) const {
    const float g = below(gate), u = up < -limit ? -limit : below(up);
    const float e = exponential(-alpha * g), s = 1.0f / (1.0f + e), value = g * s;
    const float slope = fmaf(alpha * value, e * s, s);  // s (1 + alpha g (1 - s))
    return {(u + 1.0f) * value, gate > limit ? 0.0f : (u + 1.0f) * slope, up < -limit || up > limit ? 0.0f : value};
  }
};

template <class T, class Gate>
__global__ void __launch_bounds__(kGateThreads) gate_kernel(ExpertsCall call, Gate gate, T* h, int64_t row_blocks) {
  const int64_t r = blockIdx.x / row_blocks, i = blockIdx.x % row_blocks * kGateThreads + threadIdx.x;
  if (r >= call.first[call.experts] || i >= call.inner) return;
  const T* gate_up = static_cast<const T*>(call.gates) + r * 2 * call.inner;
  store(gate.value(load(gate_up + i), load(gate_up + call.inner + i)), h + r * call.inner + i);
}

// A block is a row. hidden: dy times the down matrix; becomes weight * h. gates becomes its gradient.
template <class T, class W, class Gate>
__global__ void __launch_bounds__(kGateThreads) gate_backward_kernel(ExpertsBackward job, Gate gate) {
  const ExpertsCall& call = job.call;
  const int64_t r = blockIdx.x, F = call.inner, C = call.hidden;
  if (r >= call.first[call.experts]) return;
  const int64_t pair = call.pair[r];
  const float weight = call.weights[pair];
  T* gate_up = static_cast<T*>(call.gates) + r * 2 * F;
  float *hidden = job.hidden + r * F, dot = 0;
  for (int64_t i = threadIdx.x; i < F; i += kGateThreads) {
    const Gradients g = gate.both(load(gate_up + i), load(gate_up + F + i));
    const float dh = hidden[i], scaled = dh * weight;
    dot = fmaf(g.value, dh, dot);
    hidden[i] = g.value * weight;
    store(scaled * g.gate, gate_up + i);
    store(scaled * g.up, gate_up + F + i);
  }
  if (call.down_bias) {
    const T* dy = static_cast<const T*>(job.dy) + pair / call.slots * C;
    const W* bias = static_cast<const W*>(call.down_bias) + call.expert[pair] * C;
    for (int64_t c = threadIdx.x; c < C; c += kGateThreads) dot = fmaf(load(dy + c), weight_as<T>(bias + c), dot);
  }
  dot = row_sum<kGateThreads>(dot);
  if (threadIdx.x == 0) job.dweights[pair] = dot;
}

template <class F>
void by_gate(const ExpertsCall& call, F f) {
  if (call.kind < 0) return f(ClampedGate{call.alpha, call.limit});
  by_kind(call.kind, [&](auto act) { f(PlainGate<decltype(act)>{}); });
}

// ---- y[n] = the sum over the slots, in order, of weight * row

template <class T>
__global__ void __launch_bounds__(kGateThreads) join_kernel(const T* rows, const int32_t* place, const float* weights,
                                                            int64_t slots, int64_t columns, T* y, int64_t row_blocks) {
  const int64_t n = blockIdx.x / row_blocks, c = blockIdx.x % row_blocks * kGateThreads + threadIdx.x;
  if (c >= columns) return;
  float sum = 0;
  for (int64_t slot = n * slots; slot < (n + 1) * slots; ++slot)
    if (place[slot] >= 0) sum = fmaf(weights ? weights[slot] : 1.0f, load(rows + place[slot] * columns + c), sum);
  store(sum, y + n * columns + c);
}

template <class T>
void join(const ExpertsCall& call, const void* rows, const float* weights, void* y, Stream stream, const char* name) {
  const int64_t row_blocks = (call.hidden + kGateThreads - 1) / kGateThreads;
  launch(join_kernel<T>, blocks(call.tokens * row_blocks, 1), kGateThreads, 0, stream, static_cast<const T*>(rows),
         call.place, weights, call.slots, call.hidden, static_cast<T*>(y), row_blocks);
  check_launch(name);
}

RowProduct product_of(const ExpertsCall& call) {
  RowProduct product;
  product.slots = call.slots, product.tiles = call.tiles;
  return product;
}

template <class T, class W>
void forward(const ExpertsForward& job, Stream stream) {
  const ExpertsCall& call = job.call;
  const int64_t C = call.hidden, F = call.inner, rows = call.tokens * call.slots;
  const int64_t tiles = expert_tiles(rows, call.experts);
  RowProduct up = product_of(call);
  up.left = call.x, up.pair = call.pair, up.right = call.gate_up, up.bias = call.gate_up_bias, up.out = call.gates;
  up.terms = C, up.columns = 2 * F;
  row_product<T, W, T, Along::terms>(up, tiles, stream, "experts_forward, up");
  by_gate(call, [&](auto gate) {
    const int64_t row_blocks = (F + kGateThreads - 1) / kGateThreads;
    launch(gate_kernel<T, decltype(gate)>, blocks(rows * row_blocks, 1), kGateThreads, 0, stream, call, gate,
           static_cast<T*>(job.h), row_blocks);
  });
  check_launch("experts_forward, gate");
  RowProduct down = product_of(call);
  down.left = job.h, down.right = call.down, down.bias = call.down_bias, down.out = job.out;
  down.terms = F, down.columns = C;
  row_product<T, W, T, Along::terms>(down, tiles, stream, "experts_forward, down");
  join<T>(call, job.out, call.weights, job.y, stream, "experts_forward, join");
}

template <class T, class W>
void backward(const ExpertsBackward& job, Stream stream) {
  const ExpertsCall& call = job.call;
  const int64_t C = call.hidden, F = call.inner, rows = call.tokens * call.slots, E = call.experts;
  const int64_t tiles = expert_tiles(rows, E);
  RowProduct hidden = product_of(call);
  hidden.left = job.dy, hidden.pair = call.pair, hidden.right = call.down, hidden.out = job.hidden;
  hidden.terms = C, hidden.columns = F;
  row_product<T, W, float, Along::sums>(hidden, tiles, stream, "experts_backward, down");
  by_gate(call, [&](auto gate) {
    launch(gate_backward_kernel<T, W, decltype(gate)>, blocks(rows, 1), kGateThreads, 0, stream, job, gate);
  });
  check_launch("experts_backward, gate");
  RowProduct inputs = product_of(call);
  inputs.left = call.gates, inputs.right = call.gate_up, inputs.out = job.dinputs;
  inputs.terms = 2 * F, inputs.columns = C;
  row_product<T, W, T, Along::sums>(inputs, tiles, stream, "experts_backward, up");
  join<T>(call, job.dinputs, nullptr, job.dx, stream, "experts_backward, join");

  WeightProduct gradient;
  gradient.first = call.first, gradient.slots = call.slots;
  if (job.dgate_up) {
    gradient.left = call.gates, gradient.right = call.x, gradient.right_pair = call.pair;
    gradient.rows = 2 * F, gradient.columns = C, gradient.out = job.dgate_up;
    weight_product<T, T>(gradient, E, stream, "experts_backward, gradient of up");
  }
  if (job.ddown) {
    gradient.left = job.dy, gradient.left_pair = call.pair, gradient.right = job.hidden, gradient.right_pair = nullptr;
    gradient.rows = C, gradient.columns = F, gradient.out = job.ddown;
    weight_product<T, float>(gradient, E, stream, "experts_backward, gradient of down");
  }
  if (job.dgate_up_bias) bias_gradient<T>(call, call.gates, nullptr, 2 * F, job.dgate_up_bias, stream);
  if (job.ddown_bias) bias_gradient<T>(call, job.dy, call.weights, C, job.ddown_bias, stream);
}

bool nothing_of(const ExpertsCall& call) {
  return call.tokens == 0 || call.slots == 0 || call.hidden == 0 || call.inner == 0 || call.experts == 0;
}

}  // namespace

void experts_forward(const ExpertsForward& job, Stream stream) {
  if (nothing_of(job.call)) return;
  by_type(job.call.type, [&](auto t) {
    by_type(job.call.weight_type, [&](auto w) { forward<decltype(t), decltype(w)>(job, stream); });
  });
}

void experts_backward(const ExpertsBackward& job, Stream stream) {
  if (nothing_of(job.call)) return;
  by_type(job.call.type, [&](auto t) {
    by_type(job.call.weight_type, [&](auto w) { backward<decltype(t), decltype(w)>(job, stream); });
  });
}

}  // namespace cairn::kernels::cuda
