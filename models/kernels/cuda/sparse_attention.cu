// Softmax attention over listed keys (models/kernels/sparse_attention.h): a warp takes a query and up to four heads
// that share their keys, whose rows it reads as they are listed. Never run on a GPU so far.
#include "models/kernels/cuda/launchers_sparse.h"
#include "models/kernels/cuda/warp.cuh"

namespace cairn::kernels::cuda {
namespace {

constexpr int kSparseThreads = 128, kSparseWarps = kSparseThreads / 32;
constexpr float kNothing = -INFINITY;

__device__ inline int64_t lse_at(const SparseAttention& job, int64_t row, int64_t head) {
  return (row / job.length * job.heads + head) * job.length + row % job.length;
}

// Online softmax over tiles of 32 / kHeads keys. Scores are in units of log2.
template <class T, int kPerLane, int kHeads>
__global__ void __launch_bounds__(kSparseThreads) sparse_forward_kernel(SparseAttention job, int64_t units) {
  constexpr int kKeys = 32 / kHeads;
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * kSparseWarps + threadIdx.x / 32;
  if (unit >= units) return;  // a whole warp
  HeadSet<kHeads> set(unit, job.heads, job.kv_heads);
  const KeyList list{job.selected + set.row * job.width, job.width};
  set.row += job.begin;
  const int lane = static_cast<int>(threadIdx.x) % 32, D = static_cast<int>(job.key_dim),
            E = static_cast<int>(job.value_dim);
  const int64_t key_row = set.row / job.length * job.key_length;
  const T* k = static_cast<const T*>(job.k) + key_row * job.k_stride + set.kv_head * D;
  const T* v = static_cast<const T*>(job.v) + key_row * job.v_stride + set.kv_head * E;
  const T* q_row = static_cast<const T*>(job.q) + set.row * job.q_stride + set.head * D;

  float q[kHeads][kPerLane], out[kHeads][kPerLane] = {};
#pragma unroll
  for (int h = 0; h < kHeads; ++h) read_row(q_row + h * D, h < set.count ? D : 0, job.scale * kLog2E, q[h]);
  float top = kNothing, sum = 0;  // of this lane's head
  for (int64_t base = 0; list.has(base); base += kKeys) {
    const bool mine = list.has(base + lane % kKeys);
    const float dot = listed_dots(q, k, job.k_stride, D, list, base), score = mine ? dot : kNothing;
    const float next = fmaxf(top, lanes_max(score, 1, kKeys)), shrink = exp2f(top - next);
    const float p = mine ? exp2f(score - next) : 0.0f;
    sum = fmaf(sum, shrink, lanes_sum(p, 1, kKeys));
    top = next;
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const float factor = __shfl_sync(kAllLanes, shrink, h * kKeys);
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) out[h][i] *= factor;
    }
    add_listed_rows(p, v, job.v_stride, E, list, base, out);
  }
  T* to = static_cast<T*>(job.out) + (set.row * job.heads + set.head) * E;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const float total = __shfl_sync(kAllLanes, sum, h * kKeys);
    if (h < set.count) write_row(out[h], total == 0.0f ? 0.0f : 1.0f / total, E, to + h * E);
  }
  if (job.lse && lane % kKeys == 0 && lane / kKeys < set.count)
    job.lse[lse_at(job, set.row, set.head + lane / kKeys)] = (top + log2f(sum)) * kLn2;
}

// Rows [begin, begin + units / sets): dq, and for key_sums.cu the probabilities p and the gradients of the dot
// products.
template <class T, int kPerLane, int kHeads>
__global__ void __launch_bounds__(kSparseThreads)
    sparse_backward_kernel(SparseAttentionBackward job, int64_t begin, int64_t units, float* p_out, float* ds_out) {
  constexpr int kKeys = 32 / kHeads;
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * kSparseWarps + threadIdx.x / 32;
  if (unit >= units) return;
  const SparseAttention& f = job.forward;
  HeadSet<kHeads> set(unit, f.heads, f.kv_heads);
  const int64_t chunk_row = set.row;
  set.row += begin;
  const int lane = static_cast<int>(threadIdx.x) % 32, D = static_cast<int>(f.key_dim),
            E = static_cast<int>(f.value_dim);
  const KeyList list{f.selected + set.row * f.width, f.width};
  const int64_t key_row = set.row / f.length * f.key_length, out_row = (set.row * f.heads + set.head) * E;
  const T* k = static_cast<const T*>(f.k) + key_row * f.k_stride + set.kv_head * D;
  const T* v = static_cast<const T*>(f.v) + key_row * f.v_stride + set.kv_head * E;
  const T* q_row = static_cast<const T*>(f.q) + set.row * f.q_stride + set.head * D;

  float q[kHeads][kPerLane], dout[kHeads][kPerLane], dq[kHeads][kPerLane] = {};
  float delta = 0;  // dout . out of this lane's head
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const bool there = h < set.count;
    read_row(q_row + h * D, there ? D : 0, f.scale * kLog2E, q[h]);
    read_row(static_cast<const T*>(job.dout) + out_row + h * E, there ? E : 0, 1.0f, dout[h]);
    float out[kPerLane], sum = 0;
    read_row(static_cast<const T*>(f.out) + out_row + h * E, there ? E : 0, 1.0f, out);
#pragma unroll
    for (int i = 0; i < kPerLane; ++i) sum = fmaf(dout[h][i], out[i], sum);
    sum = lanes_sum(sum, 1, 32);
    if (lane / kKeys == h) delta = sum;
  }
  const bool there = lane / kKeys < set.count;
  const float lse = there ? f.lse[lse_at(f, set.row, set.head + lane / kKeys)] * kLog2E : INFINITY;
  const int64_t place = (chunk_row * f.heads + set.head + lane / kKeys) * f.width + lane % kKeys;
  for (int64_t base = 0; list.has(base); base += kKeys) {
    const bool mine = there && list.has(base + lane % kKeys);
    const float score = listed_dots(q, k, f.k_stride, D, list, base);
    const float dp = listed_dots(dout, v, f.v_stride, E, list, base);
    const float p = mine ? exp2f(score - lse) : 0.0f, ds = mine ? p * (dp - delta) * f.scale : 0.0f;
    if (mine) p_out[place + base] = p, ds_out[place + base] = ds;
    add_listed_rows(ds, k, f.k_stride, D, list, base, dq);
  }
  T* to = static_cast<T*>(job.dq) + set.row * job.dq_stride + set.head * D;
#pragma unroll
  for (int h = 0; h < kHeads; ++h)
    if (h < set.count) write_row(dq[h], 1.0f, D, to + h * D);
}

__global__ void __launch_bounds__(kSparseThreads) clear_kernel(float* x, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSparseThreads + threadIdx.x;
  if (i < n) x[i] = 0.0f;
}

int64_t widest(const SparseAttention& job) { return std::max(job.key_dim, job.value_dim); }

}  // namespace

void sparse_attention_forward(const SparseAttention& job, Stream stream) {
  if (job.rows == 0 || job.heads == 0) return;
  by_type(job.type, [&](auto t) {
    by_width(widest(job), [&](auto width) {
      by_group<4>(job.heads / job.kv_heads, [&](auto heads) {
        const int64_t units = job.rows * HeadSet<decltype(heads)::value>::per_row(job.heads, job.kv_heads);
        launch(sparse_forward_kernel<decltype(t), decltype(width)::value, decltype(heads)::value>,
               blocks(units, kSparseWarps), kSparseThreads, 0, stream, job, units);
      });
    });
  });
  check_launch("sparse_attention_forward");
}

// p and ds, products, places of a chunk; sums of all keys.
int64_t sparse_backward_workspace(const SparseAttention& job, int64_t chunk) {
  const int64_t width = job.width;
  return chunk * (2 * job.heads * width + job.kv_heads * width * widest(job) + job.length) +
         job.rows * job.kv_heads * (job.key_dim + job.value_dim);
}

void sparse_attention_backward(const SparseAttentionBackward& job, Stream stream) {
  const SparseAttention& f = job.forward;
  if (f.rows == 0 || f.heads == 0) return;
  const int64_t listed = job.chunk * f.heads * f.width;
  float* const p = job.workspace;
  float* const ds = p + listed;
  float* const products = ds + listed;
  float* const places = products + job.chunk * f.kv_heads * f.width * widest(f);
  float* const dk = places + job.chunk * f.length;
  float* const dv = dk + f.rows * f.kv_heads * f.key_dim;
  const int64_t sums = f.rows * f.kv_heads * (f.key_dim + f.value_dim);
  launch(clear_kernel, blocks(sums, kSparseThreads), kSparseThreads, 0, stream, dk, sums);
  check_launch("sparse_attention_backward, clear");

  for (int64_t begin = 0; begin < f.rows; begin += job.chunk) {
    const int64_t end = std::min(begin + job.chunk, f.rows);
    by_type(f.type, [&](auto t) {
      by_width(widest(f), [&](auto width) {
        // Three rows a head stay in registers.
        constexpr int kMany = decltype(width)::value > 8 ? 2 : 4;
        by_group<kMany>(f.heads / f.kv_heads, [&](auto heads) {
          const int64_t units = (end - begin) * HeadSet<decltype(heads)::value>::per_row(f.heads, f.kv_heads);
          launch(sparse_backward_kernel<decltype(t), decltype(width)::value, decltype(heads)::value>,
                 blocks(units, kSparseWarps), kSparseThreads, 0, stream, job, begin, units, p, ds);
        });
      });
    });
    check_launch("sparse_attention_backward");
    KeySums keys;
    keys.type = f.type, keys.begin = begin, keys.end = end, keys.length = f.length;
    keys.heads = f.heads, keys.kv_heads = f.kv_heads;
    keys.selected = f.selected + begin * f.width, keys.width = f.width;
    keys.places = reinterpret_cast<int32_t*>(places), keys.products = products;
    place_keys(keys, stream);
    keys.dim = f.key_dim, keys.coefficients = ds, keys.x = f.q, keys.x_stride = f.q_stride, keys.sums = dk;
    add_key_sums(keys, stream);
    keys.dim = f.value_dim, keys.coefficients = p, keys.x = job.dout, keys.x_stride = f.heads * f.value_dim;
    keys.sums = dv;
    add_key_sums(keys, stream);
  }
  write_rows(f.type, dk, f.rows, f.kv_heads * f.key_dim, job.dk, job.dk_stride, stream);
  write_rows(f.type, dv, f.rows, f.kv_heads * f.value_dim, job.dv, job.dv_stride, stream);
}

}  // namespace cairn::kernels::cuda
