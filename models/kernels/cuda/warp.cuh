// What a warp does with rows of keys: features of a row lie over its lanes, and sums over the lanes are taken for 32
// (head, key) pairs at once. Never run on a GPU so far.
#pragma once

#include <type_traits>

#include "models/kernels/cuda/device.cuh"
#include "models/kernels/cuda/launchers_sparse.h"

namespace cairn::kernels::cuda {

constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// Lane l gets the sum over the lanes of values[l]: 31 shuffles for 32 sums, always by the same tree.
__device__ inline float sum_32(float (&values)[32]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int half = 16; half > 0; half /= 2) {
    const bool upper = lane & half;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float given = upper ? values[i] : values[i + half], kept = upper ? values[i + half] : values[i];
      values[i] = kept + __shfl_xor_sync(kAllLanes, given, half);
    }
  }
  return values[0];
}

// Over lanes whose numbers differ in the bits [low, high): both powers of two.
__device__ inline float lanes_sum(float x, int low, int high) {
  for (int d = low; d < high; d *= 2) x += __shfl_xor_sync(kAllLanes, x, d);
  return x;
}
__device__ inline float lanes_max(float x, int low, int high) {
  for (int d = low; d < high; d *= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, d));
  return x;
}

// x[i] = factor * row[lane + 32 i], 0 from dim on.
template <class T, int kPerLane>
__device__ inline void read_row(const T* row, int dim, float factor, float (&x)[kPerLane]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) x[i] = lane + 32 * i < dim ? load(row + lane + 32 * i) * factor : 0.0f;
}

template <class T, int kPerLane>
__device__ inline void write_row(const float (&x)[kPerLane], float factor, int dim, T* row) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i)
    if (lane + 32 * i < dim) store(x[i] * factor, row + lane + 32 * i);
}

// The list of keys of a query: ascending positions, -1 after the last.
struct KeyList {
  const int32_t* at;
  int64_t width;
  __device__ bool has(int64_t i) const { return i < width && at[i] >= 0; }
};

// Lane h * kKeys + j gets rows[h] . key list[base + j], kKeys = 32 / kHeads. Lanes beyond the end of the list get the
// first key's.
template <class T, int kPerLane, int kHeads>
__device__ inline float listed_dots(const float (&rows)[kHeads][kPerLane], const T* keys, int64_t stride, int dim,
                                    const KeyList& list, int64_t base) {
  constexpr int kKeys = 32 / kHeads;
  float sums[32];
#pragma unroll
  for (int j = 0; j < kKeys; ++j) {
    float key[kPerLane];
    read_row(keys + list.at[list.has(base + j) ? base + j : 0] * stride, dim, 1.0f, key);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) sum = fmaf(rows[h][i], key[i], sum);
      sums[h * kKeys + j] = sum;
    }
  }
  return sum_32(sums);
}

// out[h] += sum over the keys j of the tile of (lane h * kKeys + j's factor) * key list[base + j].
template <class T, int kPerLane, int kHeads>
__device__ inline void add_listed_rows(float factor, const T* keys, int64_t stride, int dim, const KeyList& list,
                                       int64_t base, float (&out)[kHeads][kPerLane]) {
  constexpr int kKeys = 32 / kHeads;
#pragma unroll
  for (int j = 0; j < kKeys; ++j) {
    if (!list.has(base + j)) break;  // the whole warp; what lies there may be NaN
    float key[kPerLane];
    read_row(keys + list.at[base + j] * stride, dim, 1.0f, key);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const float f = __shfl_sync(kAllLanes, factor, h * kKeys + j);
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) out[h][i] = fmaf(f, key[i], out[h][i]);
    }
  }
}

// f(integral_constant of the features a lane holds) for rows of up to kWidestRow features; wider ones are refused
// before.
template <class F>
void by_width(int64_t dim, F f) {
  if (dim <= 64) return f(std::integral_constant<int, 2>{});
  if (dim <= 128) return f(std::integral_constant<int, 4>{});
  if (dim <= 256) return f(std::integral_constant<int, 8>{});
  if (dim <= kWidestRow) return f(std::integral_constant<int, kWidestRow / 32>{});
  throw std::invalid_argument("rows of " + std::to_string(dim) + " features, expected " + std::to_string(kWidestRow) +
                              " at most");
}

// Heads that share a key go through a warp together: f(integral_constant 1 or kMany).
template <int kMany, class F>
void by_group(int64_t group, F f) {
  if (group == 1) return f(std::integral_constant<int, 1>{});
  f(std::integral_constant<int, kMany>{});
}

// Which (query, kv head, set of kHeads heads that read it) a warp works on; sets of one query are neighbours, so that
// their warps find the keys in the same cache.
template <int kHeads>
struct HeadSet {
  int64_t row, kv_head, head;  // head: the first of the set
  int count;                   // of heads in it
  __device__ HeadSet(int64_t unit, int64_t heads, int64_t kv_heads) {
    const int64_t group = heads / kv_heads, sets = (group + kHeads - 1) / kHeads;
    row = unit / (kv_heads * sets), kv_head = unit / sets % kv_heads;
    const int64_t first = unit % sets * kHeads;
    head = kv_head * group + first, count = static_cast<int>(group - first < kHeads ? group - first : kHeads);
  }
  static __host__ __device__ int64_t per_row(int64_t heads, int64_t kv_heads) {
    return kv_heads * ((heads / kv_heads + kHeads - 1) / kHeads);
  }
};

}  // namespace cairn::kernels::cuda
