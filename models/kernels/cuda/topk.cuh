// The k best of a row of scores by a block: a radix search for the k-th best, eight bits at a time, then a pass in
// ascending order. Equal scores go to the lower place. Integer counts alone, so the order of threads changes nothing.
// Never run on a GPU so far.
#pragma once

#include "models/kernels/cuda/device.cuh"

namespace cairn::kernels::cuda {

constexpr int kTopkThreads = 256;

// Scores as they are compared: no NaN (the lowest), no negative zero, finite. A larger number is a better score; all
// ones are left for places that are always chosen.
__device__ inline uint32_t rank_of(float score) {
  constexpr float kLargest = 3.402823466e38f;
  float s = score > -kLargest ? score : -kLargest;  // NaN too
  s = (s < kLargest ? s : kLargest) + 0.0f;
  const uint32_t bits = __float_as_uint(s);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Sum over the threads up to and including this one; *total: over all. Every thread of the block calls it.
__device__ inline uint32_t block_scan(uint32_t value, uint32_t* total) {
  __shared__ uint32_t warps[kTopkThreads / 32];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const uint32_t before = __shfl_up_sync(0xFFFFFFFFu, value, d);
    if (lane >= d) value += before;
  }
  if (lane == 31) warps[warp] = value;
  __syncthreads();
  uint32_t all = 0, sum = value;
#pragma unroll
  for (int w = 0; w < kTopkThreads / 32; ++w) {
    if (w < warp) sum += warps[w];
    all += warps[w];
  }
  __syncthreads();  // before the next scan writes there
  *total = all;
  return sum;
}

struct Threshold {
  uint32_t rank = 0;  // everything above it is chosen,
  uint32_t ties = 0;  // and the first so many that equal it
};

// Of places [0, count), count > topk > 0; rank(i) says how good place i is.
template <class Rank>
__device__ Threshold find_threshold(int64_t count, int64_t topk, Rank rank) {
  __shared__ uint32_t bins[256];
  __shared__ uint32_t found, left;
  static_assert(kTopkThreads == 256, "a thread a bin");
  uint32_t prefix = 0, known = 0, wanted = static_cast<uint32_t>(topk);
  for (int shift = 24; shift >= 0; shift -= 8) {
    bins[threadIdx.x] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < count; i += kTopkThreads) {
      const uint32_t r = rank(i);
      if ((r & known) == prefix) atomicAdd(&bins[r >> shift & 255u], 1u);
    }
    __syncthreads();
    const uint32_t bin = 255u - threadIdx.x, here = bins[bin];  // the best bin first
    uint32_t total;
    const uint32_t up_to = block_scan(here, &total);
    if (up_to >= wanted && up_to - here < wanted) found = bin, left = wanted - (up_to - here);
    __syncthreads();
    prefix |= found << shift, known |= 255u << shift, wanted = left;  // written again three barriers later
  }
  return {prefix, wanted};
}

// chosen(i, n) for the n-th chosen place i, in ascending order; a place is seen by one thread.
template <class Rank, class Chosen>
__device__ void for_chosen(int64_t count, int64_t topk, const Threshold& threshold, Rank rank, Chosen chosen) {
  int64_t better = 0, equal = 0;  // before this round
  for (int64_t base = 0; base < count && better + equal < topk; base += kTopkThreads) {
    const int64_t i = base + threadIdx.x;
    const uint32_t r = i < count ? rank(i) : 0u;  // no place ranks as low as 0
    const uint32_t is_better = r > threshold.rank, is_equal = r == threshold.rank && i < count;
    uint32_t total;
    const uint32_t sum = block_scan(is_better << 16 | is_equal, &total);
    const int64_t better_before = better + (sum >> 16) - is_better, equal_before = equal + (sum & 0xFFFFu) - is_equal;
    const int64_t ties_before = equal_before < threshold.ties ? equal_before : threshold.ties;
    if (is_better || (is_equal && equal_before < threshold.ties)) chosen(i, better_before + ties_before);
    better += total >> 16, equal += total & 0xFFFFu;
    if (equal > threshold.ties) equal = threshold.ties;
  }
}

}  // namespace cairn::kernels::cuda
