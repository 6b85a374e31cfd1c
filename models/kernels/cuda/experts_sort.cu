// Pairs of token and slot in order of expert (models/kernels/grouped_linear.h): counted piece by piece, added up, then
// placed. A pair's rank among those of its expert is found by comparing with all before it in its piece, so the order
// is that of the tokens and there are no atomics. Never run on a GPU so far.
#include "models/kernels/cuda/device.cuh"
#include "models/kernels/cuda/launchers_experts.h"

namespace cairn::kernels::cuda {
namespace {

constexpr int kThreads = kSortPiece, kScanThreads = 1024;

struct Ranked {
  int64_t pair;         // -1: the thread has none
  int32_t expert;       // -1: none, or out of range
  int32_t rank, count;  // among those of the expert in the piece; how many come up to this one
  bool last;            // no later one of the expert
};

// A block is a piece; pieces do not cross sequences.
__device__ inline Ranked rank_of_thread(const ExpertSort& job) {
  __shared__ int32_t experts[kThreads];
  const int64_t pieces = (job.sequence_pairs + kSortPiece - 1) / kSortPiece;  // of a sequence
  const int64_t within = blockIdx.x % pieces * kSortPiece + threadIdx.x;
  const int thread = threadIdx.x;
  Ranked r{-1, -1, 0, 0, true};
  if (within < job.sequence_pairs) {
    r.pair = blockIdx.x / pieces * job.sequence_pairs + within;
    const int32_t expert = job.expert[r.pair];
    if (expert >= 0 && expert < job.experts) r.expert = expert;
  }
  experts[thread] = r.expert;
  __syncthreads();
  for (int i = 0; i < thread; ++i) r.rank += experts[i] == r.expert;
  for (int i = thread + 1; i < kThreads; ++i) r.last = r.last && experts[i] != r.expert;
  r.count = r.rank + 1;
  return r;
}

__global__ void __launch_bounds__(kThreads) count_kernel(ExpertSort job) {
  int32_t* counts = job.start + blockIdx.x * job.experts;
  for (int64_t e = threadIdx.x; e < job.experts; e += kThreads) counts[e] = 0;
  const Ranked r = rank_of_thread(job);  // its barrier comes after the zeros
  if (r.expert >= 0 && r.last) counts[r.expert] = r.count;
}

// Counts become the first row of a piece's pairs inside their group; groups and tiles are laid out. One block.
__global__ void __launch_bounds__(kScanThreads) scan_kernel(ExpertSort job, int64_t tile_count) {
  int32_t* first = dynamic_shared<int32_t>();     // [E + 1], first the counts
  int32_t* first_tile = first + job.experts + 1;  // [E + 1]
  const int64_t pieces = (job.sequence_pairs + kSortPiece - 1) / kSortPiece, sequences = job.pairs / job.sequence_pairs;
  for (int64_t e = threadIdx.x; e < job.experts; e += kScanThreads) {
    int32_t kept = 0;
    for (int64_t s = 0; s < sequences; ++s) {
      int32_t before = 0;  // in this sequence
      for (int64_t piece = s * pieces; piece < (s + 1) * pieces; ++piece) {
        const int32_t count = job.start[piece * job.experts + e];
        job.start[piece * job.experts + e] = kept + before;
        job.room[piece * job.experts + e] = job.capacity > 0 ? static_cast<int32_t>(job.capacity) - before : 0x7FFFFFFF;
        before += count;
      }
      kept += job.capacity > 0 && before > job.capacity ? static_cast<int32_t>(job.capacity) : before;
    }
    first[e] = kept;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t rows = 0, tiles = 0;
    for (int64_t e = 0; e < job.experts; ++e) {
      const int32_t count = first[e];
      first[e] = rows, first_tile[e] = tiles;
      rows += count, tiles += static_cast<int32_t>((count + kExpertTile - 1) / kExpertTile);
    }
    first[job.experts] = rows, first_tile[job.experts] = tiles;
  }
  __syncthreads();
  for (int64_t e = threadIdx.x; e < job.experts; e += kScanThreads)
    for (int32_t tile = first_tile[e], row = first[e]; tile < first_tile[e + 1]; ++tile, row += kExpertTile) {
      const int32_t left = first[e + 1] - row;
      job.tiles[tile] = {static_cast<int32_t>(e), row, left < kExpertTile ? left : static_cast<int32_t>(kExpertTile)};
    }
  for (int64_t tile = first_tile[job.experts] + threadIdx.x; tile < tile_count; tile += kScanThreads)
    job.tiles[tile] = {0, 0, 0};
  for (int64_t e = threadIdx.x; e <= job.experts; e += kScanThreads) job.first[e] = first[e];
}

__global__ void __launch_bounds__(kThreads) place_kernel(ExpertSort job) {
  const Ranked r = rank_of_thread(job);
  if (r.pair < 0) return;
  const int64_t at = blockIdx.x * job.experts + r.expert;
  const bool kept = r.expert >= 0 && r.rank < job.room[at];
  const int32_t place = kept ? job.first[r.expert] + job.start[at] + r.rank : -1;
  job.place[r.pair] = place;
  if (kept) job.pair[place] = static_cast<int32_t>(r.pair);
}

}  // namespace

void sort_by_expert(const ExpertSort& job, Stream stream) {
  const unsigned pieces = static_cast<unsigned>(job.pieces());
  if (pieces > 0) {
    launch(count_kernel, pieces, kThreads, 0, stream, job);
    check_launch("sort_by_expert, counts");
  }
  launch(scan_kernel, 1, kScanThreads, (job.experts + 1) * 2 * sizeof(int32_t), stream, job,
         expert_tiles(job.pairs, job.experts));
  check_launch("sort_by_expert, sums");
  if (pieces == 0) return;
  launch(place_kernel, pieces, kThreads, 0, stream, job);
  check_launch("sort_by_expert, places");
}

}  // namespace cairn::kernels::cuda
