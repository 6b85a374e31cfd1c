// Sums over the queries that list a key, without atomics: each query first multiplies its coefficients into rows of
// products, one a listed key, then every key adds up those rows that are its own, query by query. Never run on a GPU so
// far.
#include "models/kernels/cuda/launchers_sparse.h"
#include "models/kernels/cuda/warp.cuh"

namespace cairn::kernels::cuda {
namespace {

constexpr int kSumThreads = 128, kTileKeys = 16;

__global__ void __launch_bounds__(kSumThreads) fill_places_kernel(int32_t* places, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
  if (i < n) places[i] = -1;
}

// A thread an entry of a list; no key stands twice in one.
__global__ void __launch_bounds__(kSumThreads) place_keys_kernel(KeySums job) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
  if (i >= (job.end - job.begin) * job.width) return;
  const int32_t key = job.selected[i];
  if (key >= 0) job.places[i / job.width * job.length + key] = static_cast<int32_t>(i % job.width);
}

// products[n, kv, i] = sum over the kv head's heads of coefficients[n, h, i] * x[n, h]. A block: kTileKeys places of
// one list; a thread: some features of all of them. Shared memory: [group, kTileKeys].
template <class T>
__global__ void __launch_bounds__(kSumThreads) products_kernel(KeySums job, int64_t tiles) {
  float* shared = dynamic_shared<float>();
  const int64_t first = blockIdx.x % tiles * kTileKeys, unit = blockIdx.x / tiles, kv_head = unit % job.kv_heads,
                n = unit / job.kv_heads, group = job.heads / job.kv_heads;
  const int32_t* list = job.selected + n * job.width;
  if (list[first] < 0) return;  // the whole block
  const int64_t left = job.width - first;
  const float* from = job.coefficients + (n * job.heads + kv_head * group) * job.width + first;
  for (int64_t i = threadIdx.x; i < group * kTileKeys; i += kSumThreads) {
    const int64_t key = i % kTileKeys;
    shared[i] = key < left && list[first + key] >= 0 ? from[i / kTileKeys * job.width + key] : 0.0f;
  }
  __syncthreads();
  const T* x = static_cast<const T*>(job.x) + (job.begin + n) * job.x_stride + kv_head * group * job.dim;
  float* to = job.products + ((n * job.kv_heads + kv_head) * job.width + first) * job.dim;
  for (int64_t f = threadIdx.x; f < job.dim; f += kSumThreads) {
    float sums[kTileKeys] = {};
    for (int64_t h = 0; h < group; ++h) {
      const float value = load(x + h * job.dim + f);
#pragma unroll
      for (int j = 0; j < kTileKeys; ++j) sums[j] = fmaf(shared[h * kTileKeys + j], value, sums[j]);
    }
#pragma unroll
    for (int j = 0; j < kTileKeys; ++j)
      if (j < left) to[j * job.dim + f] = sums[j];
  }
}

// A block: one row of keys and one kv head.
__global__ void __launch_bounds__(kSumThreads) add_products_kernel(KeySums job, int64_t first_key) {
  constexpr int kPerThread = (kWidestRow + kSumThreads - 1) / kSumThreads;
  const int64_t key = first_key + blockIdx.x / job.kv_heads, kv_head = blockIdx.x % job.kv_heads;
  const int64_t position = key % job.length, sequence_end = key - position + job.length;
  // Queries that may list it: of its sequence, not before it.
  const int64_t begin = key > job.begin ? key : job.begin, end = job.end < sequence_end ? job.end : sequence_end;
  float* to = job.sums + (key * job.kv_heads + kv_head) * job.dim;
  float sums[kPerThread];
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int f = static_cast<int>(threadIdx.x) + i * kSumThreads;
    sums[i] = f < job.dim ? to[f] : 0.0f;
  }
  for (int64_t n = begin - job.begin; n < end - job.begin; ++n) {
    const int32_t place = job.places[n * job.length + position];
    if (place < 0) continue;
    const float* from = job.products + ((n * job.kv_heads + kv_head) * job.width + place) * job.dim;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int f = static_cast<int>(threadIdx.x) + i * kSumThreads;
      if (f < job.dim) sums[i] += from[f];
    }
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int f = static_cast<int>(threadIdx.x) + i * kSumThreads;
    if (f < job.dim) to[f] = sums[i];
  }
}

template <class T>
__global__ void __launch_bounds__(kSumThreads)
    write_rows_kernel(const float* x, int64_t n, int64_t columns, T* out, int64_t stride) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x;
  if (i < n) store(x[i], out + i / columns * stride + i % columns);
}

}  // namespace

void place_keys(const KeySums& job, Stream stream) {
  const int64_t rows = job.end - job.begin;
  if (rows == 0 || job.width == 0) return;
  launch(fill_places_kernel, blocks(rows * job.length, kSumThreads), kSumThreads, 0, stream, job.places,
         rows * job.length);
  check_launch("place_keys, fill");
  launch(place_keys_kernel, blocks(rows * job.width, kSumThreads), kSumThreads, 0, stream, job);
  check_launch("place_keys");
}

void add_key_sums(const KeySums& job, Stream stream) {
  const int64_t rows = job.end - job.begin, tiles = (job.width + kTileKeys - 1) / kTileKeys;
  if (rows == 0 || job.width == 0 || job.dim == 0) return;
  if (job.dim > kWidestRow) throw std::invalid_argument("add_key_sums: rows of " + std::to_string(job.dim));
  const size_t shared = static_cast<size_t>(job.heads / job.kv_heads * kTileKeys) * sizeof(float);
  by_type(job.type, [&](auto t) {
    launch(products_kernel<decltype(t)>, blocks(rows * job.kv_heads * tiles, 1), kSumThreads, shared, stream, job,
           tiles);
  });
  check_launch("add_key_sums, products");
  const int64_t first_key = job.begin / job.length * job.length;
  launch(add_products_kernel, blocks((job.end - first_key) * job.kv_heads, 1), kSumThreads, 0, stream, job, first_key);
  check_launch("add_key_sums");
}

void write_rows(Type type, const float* x, int64_t rows, int64_t columns, void* out, int64_t stride, Stream stream) {
  const int64_t n = rows * columns;
  if (n == 0) return;
  by_type(type, [&](auto t) {
    using T = decltype(t);
    launch(write_rows_kernel<T>, blocks(n, kSumThreads), kSumThreads, 0, stream, x, n, columns, static_cast<T*>(out),
           stride);
  });
  check_launch("write_rows");
}

}  // namespace cairn::kernels::cuda
