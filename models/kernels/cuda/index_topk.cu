// The lightning indexer's scores and the keys that they choose (models/kernels/index_topk.h), strip by strip of
// queries. With float32 inputs a score has the bits of the CPU's: one chain of fused multiply-adds over the features,
// then one over the heads. Never run on a GPU so far.
#include "models/kernels/cuda/launchers_sparse.h"
#include "models/kernels/cuda/topk.cuh"

namespace cairn::kernels::cuda {
namespace {

// A block scores 64 queries against 64 keys, a thread every 16th of both, features 32 at a time through shared memory.
constexpr int kScoreTile = 64, kScoreFeatures = 32, kScoreSide = 16, kScoreThreads = kScoreSide * kScoreSide,
              kScoreEach = kScoreTile / kScoreSide;

__global__ void __launch_bounds__(kScoreThreads)
    starts_kernel(const int32_t* segments, int64_t rows, int64_t length, int32_t* start) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kScoreThreads + threadIdx.x;
  if (n >= rows) return;
  if (!segments) {
    start[n] = 0;
    return;
  }
  const int64_t sequence = n - n % length;
  int64_t low = sequence, high = n;  // segments do not decrease: the first row of this number is in [low, high]
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (segments[middle] == segments[n])
      high = middle;
    else
      low = middle + 1;
  }
  start[n] = static_cast<int32_t>(low - sequence);
}

__global__ void __launch_bounds__(kScoreThreads) candidates_kernel(const int32_t* start, int64_t begin, int64_t entries,
                                                                   int64_t length, int64_t width, int32_t* lists) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kScoreThreads + threadIdx.x;
  if (at >= entries) return;
  const int64_t n = begin + at / width, position = start[n] + at % width;
  lists[at] = static_cast<int32_t>(position <= n % length ? position : -1);
}

// A strip: queries [begin, end) of sequences [sequence, sequence + gridDim.z). scores [sequence][query][key_length].
struct Strip {
  int64_t sequence, begin, end;
  __device__ int64_t queries() const { return end - begin; }
};

// Rows [row0, row0 + 64) of x, features [f0, f0 + 32), zeros where there are none -> to[feature][row].
template <class T>
__device__ inline void fetch(const T* x, int64_t stride, int64_t row0, int64_t rows, int64_t f0, int64_t dim,
                             float (&to)[kScoreFeatures][kScoreTile + 1]) {
  for (int i = threadIdx.x; i < kScoreTile * kScoreFeatures; i += kScoreThreads) {
    const int f = i % kScoreFeatures, r = i / kScoreFeatures;
    to[f][r] = row0 + r < rows && f0 + f < dim ? load(x + (row0 + r) * stride + f0 + f) : 0.0f;
  }
}

template <class T>
__global__ void __launch_bounds__(kScoreThreads) scores_kernel(IndexTopk job, Strip strip, float* scores) {
  __shared__ float q_tile[kScoreFeatures][kScoreTile + 1], k_tile[kScoreFeatures][kScoreTile + 1];
  const int64_t sequence = strip.sequence + blockIdx.z, q0 = strip.begin + blockIdx.y * int64_t{kScoreTile},
                k0 = blockIdx.x * int64_t{kScoreTile};
  const int64_t q_end = q0 + kScoreTile < strip.end ? q0 + kScoreTile : strip.end, row0 = sequence * job.length;
  // Nobody in the block may see these keys.
  if (k0 > job.first_position + q_end - 1 || k0 + kScoreTile <= job.start[row0 + q0]) return;
  const T* q = static_cast<const T*>(job.q) + row0 * job.q_stride;
  const T* k = static_cast<const T*>(job.k) + sequence * job.key_length * job.k_stride;
  const T* w = static_cast<const T*>(job.w) + row0 * job.w_stride;
  const int tx = static_cast<int>(threadIdx.x) % kScoreSide, ty = static_cast<int>(threadIdx.x) / kScoreSide;

  float score[kScoreEach][kScoreEach] = {};  // of queries ty + 16 a and keys tx + 16 b
  for (int64_t head = 0; head < job.heads; ++head) {
    float dot[kScoreEach][kScoreEach] = {};
    for (int64_t f0 = 0; f0 < job.dim; f0 += kScoreFeatures) {
      __syncthreads();  // the tiles before have been read
      fetch(q + head * job.dim, job.q_stride, q0, q_end, f0, job.dim, q_tile);
      fetch(k, job.k_stride, k0, job.key_length, f0, job.dim, k_tile);
      __syncthreads();
#pragma unroll 8
      for (int f = 0; f < kScoreFeatures; ++f) {
        float a[kScoreEach], b[kScoreEach];
#pragma unroll
        for (int i = 0; i < kScoreEach; ++i)
          a[i] = q_tile[f][ty + kScoreSide * i], b[i] = k_tile[f][tx + kScoreSide * i];
#pragma unroll
        for (int i = 0; i < kScoreEach; ++i)
#pragma unroll
          for (int j = 0; j < kScoreEach; ++j) dot[i][j] = fmaf(a[i], b[j], dot[i][j]);
      }
    }
#pragma unroll
    for (int i = 0; i < kScoreEach; ++i) {
      const int64_t row = q0 + ty + kScoreSide * i;
      const float weight = row < q_end ? load(w + row * job.w_stride + head) : 0.0f;
#pragma unroll
      for (int j = 0; j < kScoreEach; ++j)  // NaN passes
        score[i][j] = fmaf(dot[i][j] < 0.0f ? 0.0f : dot[i][j], weight, score[i][j]);
    }
  }
#pragma unroll
  for (int i = 0; i < kScoreEach; ++i)
#pragma unroll
    for (int j = 0; j < kScoreEach; ++j) {
      const int64_t row = q0 + ty + kScoreSide * i, key = k0 + tx + kScoreSide * j;
      if (row < q_end && key < job.key_length)
        scores[((sequence - strip.sequence) * strip.queries() + row - strip.begin) * job.key_length + key] =
            score[i][j];
    }
}

// A block a query.
__global__ void __launch_bounds__(kTopkThreads) choose_kernel(IndexTopk job, Strip strip, const float* scores) {
  const int64_t strip_row = blockIdx.x, sequence = strip.sequence + strip_row / strip.queries(),
                query = strip.begin + strip_row % strip.queries(), row = sequence * job.length + query;
  const int64_t first = job.start[row], last = job.first_position + query, count = last - first + 1,
                width = job.topk < job.key_length ? job.topk : job.key_length;
  int32_t* to = job.selected + row * width;
  if (count <= job.topk) {
    for (int64_t i = threadIdx.x; i < width; i += kTopkThreads)
      to[i] = static_cast<int32_t>(i < count ? first + i : -1);
    return;
  }
  const float* from = scores + strip_row * job.key_length + first;
  const int64_t near = count - job.window;
  const auto rank = [&](int64_t i) { return i < job.sinks || i >= near ? 0xFFFFFFFFu : rank_of(from[i]); };
  const Threshold threshold = find_threshold(count, job.topk, rank);
  for_chosen(count, job.topk, threshold, rank, [&](int64_t i, int64_t n) { to[n] = static_cast<int32_t>(first + i); });
}

}  // namespace

void segment_starts(const int32_t* segments, int64_t rows, int64_t length, int32_t* start, Stream stream) {
  if (rows == 0) return;
  launch(starts_kernel, blocks(rows, kScoreThreads), kScoreThreads, 0, stream, segments, rows, length, start);
  check_launch("segment_starts");
}

void list_candidates(const int32_t* start, int64_t begin, int64_t end, int64_t length, int64_t width, int32_t* lists,
                     Stream stream) {
  const int64_t entries = (end - begin) * width;
  if (entries == 0) return;
  launch(candidates_kernel, blocks(entries, kScoreThreads), kScoreThreads, 0, stream, start, begin, entries, length,
         width, lists);
  check_launch("list_candidates");
}

void index_topk(const IndexTopk& job, Stream stream) {
  if (job.length == 0 || job.sequences == 0) return;
  const int64_t sequences_at_once = std::clamp<int64_t>(job.chunk / job.length, 1, 65535),
                queries_at_once = std::min(job.chunk, job.length);
  for (int64_t sequence = 0; sequence < job.sequences; sequence += sequences_at_once)
    for (int64_t begin = 0; begin < job.length; begin += queries_at_once) {
      const Strip strip{sequence, begin, std::min(begin + queries_at_once, job.length)};
      const int64_t sequences = std::min(sequences_at_once, job.sequences - sequence), queries = strip.end - begin;
      const int64_t keys = std::min(job.first_position + strip.end, job.key_length);
      const dim3 grid(blocks(keys, kScoreTile), blocks(queries, kScoreTile), static_cast<unsigned>(sequences));
      by_type(job.type, [&](auto t) {
        launch(scores_kernel<decltype(t)>, grid, kScoreThreads, 0, stream, job, strip, job.workspace);
      });
      check_launch("index_topk, scores");
      launch(choose_kernel, blocks(sequences * queries, 1), kTopkThreads, 0, stream, job, strip,
             static_cast<const float*>(job.workspace));
      check_launch("index_topk");
    }
}

}  // namespace cairn::kernels::cuda
