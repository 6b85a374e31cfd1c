// What the lightning indexer learns from (models/kernels/index_loss.h), over listed keys; over all candidates the lists
// are written first. A chunk of queries at a time: scores, attention mass, loss, gradients. Never run on a GPU so far.
#include "models/kernels/cuda/launchers_sparse.h"
#include "models/kernels/cuda/topk.cuh"
#include "models/kernels/cuda/warp.cuh"

namespace cairn::kernels::cuda {
namespace {

constexpr int kLossThreads = 256, kListThreads = 128, kListWarps = kListThreads / 32;
constexpr int kListSegment = 256;  // places of a list that a block takes

// A chunk of queries and its strips.
struct Chunk {
  int64_t begin, end, width;  // rows; width of the lists and of each strip
  const int32_t* lists;       // [end - begin, width]
  float *scores, *mass, *p;   // [end - begin, width]; scores become their gradients
};

// What a head adds to the strip for a key, from its dot product.
struct ScoreOf {  // w relu(dot)
  float w;
  __device__ float operator()(float dot) const { return w * (dot < 0.0f ? 0.0f : dot); }
};
struct MassOf {  // exp(scale dot - lse), the scale already in q
  float lse;
  __device__ float operator()(float dot) const { return exp2f(dot - lse); }
};

// One job for the indexer's scores and for attention mass.
struct ListedSums {
  int64_t length, heads, kv_heads, dim;
  float scale;
  const void *q, *k;
  int64_t q_stride, k_stride;
  const void* w;  // of the indexer; null: mass
  int64_t w_stride;
  const float* lse;
};

// out[row, i] = sum over the heads for the key at place i. A block: one list and kListSegment of its places; a warp:
// every kListWarps-th set of heads, the warps' sums are added in order.
template <class T, int kPerLane, int kHeads, bool kMass>
__global__ void __launch_bounds__(kListThreads)
    listed_sums_kernel(ListedSums job, Chunk chunk, int64_t segments, float* out) {
  constexpr int kKeys = 32 / kHeads;
  __shared__ float sums[kListWarps][kListSegment];
  const int64_t chunk_row = blockIdx.x / segments, first = blockIdx.x % segments * kListSegment,
                row = chunk.begin + chunk_row;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32,
            D = static_cast<int>(job.dim);
  const int64_t left = chunk.width - first;
  const KeyList list{chunk.lists + chunk_row * chunk.width + first, left < kListSegment ? left : kListSegment};
  if (!list.has(0)) return;  // the whole block
  for (int i = lane; i < kListSegment; i += 32) sums[warp][i] = 0.0f;
  __syncwarp();

  const int64_t sets = HeadSet<kHeads>::per_row(job.heads, job.kv_heads), sequence = row / job.length;
  for (int64_t unit = warp; unit < sets; unit += kListWarps) {
    const HeadSet<kHeads> set(unit, job.heads, job.kv_heads);
    const T* q_row = static_cast<const T*>(job.q) + row * job.q_stride + set.head * D;
    const T* k = static_cast<const T*>(job.k) + sequence * job.length * job.k_stride + set.kv_head * D;
    float q[kHeads][kPerLane];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) read_row(q_row + h * D, h < set.count ? D : 0, job.scale, q[h]);
    const int64_t head = set.head + lane / kKeys;
    const bool there = lane / kKeys < set.count;
    float constant;
    if constexpr (kMass)
      constant = there ? job.lse[(sequence * job.heads + head) * job.length + row % job.length] * kLog2E : INFINITY;
    else
      constant = there ? load(static_cast<const T*>(job.w) + row * job.w_stride + head) : 0.0f;
    for (int64_t base = 0; list.has(base); base += kKeys) {
      const float dot = listed_dots(q, k, job.k_stride, D, list, base);
      float part;
      if constexpr (kMass)
        part = MassOf{constant}(dot);
      else
        part = ScoreOf{constant}(dot);
      part = lanes_sum(part, kKeys, 32);
      if (lane < kKeys) sums[warp][base + lane] += part;
    }
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < list.width; i += kListThreads) {
    float sum = sums[0][i];
#pragma unroll
    for (int w = 1; w < kListWarps; ++w) sum += sums[w][i];
    out[chunk_row * chunk.width + first + i] = sum;
  }
}

// p (+)= weight * mass / its sum over the list. A block a row.
__global__ void __launch_bounds__(kLossThreads) normalise_kernel(Chunk chunk, float weight, bool add) {
  const int64_t at = blockIdx.x * chunk.width;
  const KeyList list{chunk.lists + at, chunk.width};
  float sum = 0;
  for (int64_t i = threadIdx.x; list.has(i); i += kLossThreads) sum += chunk.mass[at + i];
  sum = row_sum<kLossThreads>(sum);
  const float factor = weight / fmaxf(sum, 1.17549435e-38f);
  for (int64_t i = threadIdx.x; list.has(i); i += kLossThreads)
    chunk.p[at + i] = chunk.mass[at + i] * factor + (add ? chunk.p[at + i] : 0.0f);
}

// The largest over the threads of a block, in the same bits for all of them.
__device__ inline float block_max(float x) {
  __shared__ float warps[kLossThreads / 32];
  x = lanes_max(x, 1, 32);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  for (int w = 0; w < kLossThreads / 32; ++w) x = fmaxf(x, warps[w]);
  __syncthreads();
  return x;
}

// kl[row], and the scores' gradients in place of the scores. A block a row.
__global__ void __launch_bounds__(kLossThreads) loss_kernel(IndexLossRun job, Chunk chunk) {
  const int64_t at = blockIdx.x * chunk.width, row = chunk.begin + blockIdx.x;
  const KeyList list{chunk.lists + at, chunk.width};
  float *scores = chunk.scores + at, *p = chunk.p + at;
  if (row % job.length == job.start[row]) {  // one candidate: nothing to learn
    if (threadIdx.x == 0) job.kl[row] = 0.0f;
    for (int64_t i = threadIdx.x; list.has(i); i += kLossThreads) scores[i] = 0.0f;
    return;
  }
  float top = -INFINITY;
  for (int64_t i = threadIdx.x; list.has(i); i += kLossThreads) top = fmaxf(top, scores[i]);
  top = block_max(top);
  float sum = 0;
  for (int64_t i = threadIdx.x; list.has(i); i += kLossThreads) sum += expf(scores[i] - top);
  sum = row_sum<kLossThreads>(sum);
  const float log_sum = logf(sum);
  float kl = 0;
  for (int64_t i = threadIdx.x; list.has(i); i += kLossThreads) {
    const float log_q = scores[i] - top - log_sum;
    if (p[i] > 0.0f) kl += p[i] * (logf(p[i]) - log_q);
    scores[i] = job.coefficient * (expf(log_q) - p[i]);
  }
  kl = row_sum<kLossThreads>(kl);
  if (threadIdx.x == 0) job.kl[row] = kl;
}

// Attention on the keys that the scores would choose, and on the best choice. A block a row, before loss_kernel.
__global__ void __launch_bounds__(kTopkThreads) recall_kernel(IndexLossRun job, Chunk chunk) {
  const int64_t at = blockIdx.x * chunk.width, row = chunk.begin + blockIdx.x;
  const int64_t count = row % job.length - job.start[row] + 1, near = count - job.window;
  const float *scores = chunk.scores + at, *p = chunk.p + at;
  float share = 0, best = 0;
  if (count > job.topk) {
    const auto by_score = [&](int64_t i) { return i < job.sinks || i >= near ? 0xFFFFFFFFu : rank_of(scores[i]); };
    const auto by_mass = [&](int64_t i) { return rank_of(p[i]); };
    const Threshold chosen = find_threshold(count, job.topk, by_score);
    for_chosen(count, job.topk, chosen, by_score, [&](int64_t i, int64_t) { share += p[i]; });
    const Threshold heaviest = find_threshold(count, job.topk, by_mass);
    for_chosen(count, job.topk, heaviest, by_mass, [&](int64_t i, int64_t) { best += p[i]; });
  }
  share = row_sum<kTopkThreads>(share), best = row_sum<kTopkThreads>(best);
  if (threadIdx.x == 0) job.recall[row] = share, job.best_recall[row] = best;
}

// dq and dw of a query and a set of heads, and for key_sums.cu what each key's gradient takes of q.
template <class T, int kPerLane, int kHeads>
__global__ void __launch_bounds__(kListThreads)
    index_gradient_kernel(IndexLossRun job, Chunk chunk, int64_t units, float* coefficients) {
  constexpr int kKeys = 32 / kHeads;
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * kListWarps + threadIdx.x / 32;
  if (unit >= units) return;  // a whole warp
  const HeadSet<kHeads> set(unit, job.heads, 1);
  const int64_t row = chunk.begin + set.row;
  const int lane = static_cast<int>(threadIdx.x) % 32, D = static_cast<int>(job.dim);
  const KeyList list{chunk.lists + set.row * chunk.width, chunk.width};
  const float* gradient = chunk.scores + set.row * chunk.width;
  const T* k = static_cast<const T*>(job.k) + row / job.length * job.length * job.k_stride;
  const T* q_row = static_cast<const T*>(job.q) + row * job.q_stride + set.head * D;
  float q[kHeads][kPerLane], dq[kHeads][kPerLane] = {};
#pragma unroll
  for (int h = 0; h < kHeads; ++h) read_row(q_row + h * D, h < set.count ? D : 0, 1.0f, q[h]);
  const bool there = lane / kKeys < set.count;
  const float w = there ? load(static_cast<const T*>(job.w) + row * job.w_stride + set.head + lane / kKeys) : 0.0f;
  const int64_t place = (set.row * job.heads + set.head + lane / kKeys) * chunk.width + lane % kKeys;
  float dw = 0;
  for (int64_t base = 0; list.has(base); base += kKeys) {
    const bool mine = there && list.has(base + lane % kKeys);
    const float dot = listed_dots(q, k, job.k_stride, D, list, base);
    const float g = mine && dot > 0.0f ? gradient[base + lane % kKeys] : 0.0f;
    dw = fmaf(g, dot, dw);
    if (mine) coefficients[place + base] = g * w;
    add_listed_rows(g * w, k, job.k_stride, D, list, base, dq);
  }
  dw = lanes_sum(dw, 1, kKeys);
  if (there && lane % kKeys == 0) store(dw, static_cast<T*>(job.dw) + row * job.heads + set.head + lane / kKeys);
  T* to = static_cast<T*>(job.dq) + (row * job.heads + set.head) * D;
#pragma unroll
  for (int h = 0; h < kHeads; ++h)
    if (h < set.count) write_row(dq[h], 1.0f, D, to + h * D);
}

__global__ void __launch_bounds__(kLossThreads) zero_kernel(float* x, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kLossThreads + threadIdx.x;
  if (i < n) x[i] = 0.0f;
}

void listed_sums(Type type, const ListedSums& job, const Chunk& chunk, float* out, Stream stream) {
  const int64_t segments = (chunk.width + kListSegment - 1) / kListSegment;
  const unsigned grid = blocks((chunk.end - chunk.begin) * segments, 1);
  by_type(type, [&](auto t) {
    using T = decltype(t);
    by_width(job.dim, [&](auto width) {
      constexpr int kPerLane = decltype(width)::value;
      by_group<4>(job.heads / job.kv_heads, [&](auto heads) {
        constexpr int kHeads = decltype(heads)::value;
        if (job.w)
          launch(listed_sums_kernel<T, kPerLane, kHeads, false>, grid, kListThreads, 0, stream, job, chunk, segments,
                 out);
        else
          launch(listed_sums_kernel<T, kPerLane, kHeads, true>, grid, kListThreads, 0, stream, job, chunk, segments,
                 out);
      });
    });
  });
  check_launch(job.w ? "index_loss, scores" : "index_loss, mass");
}

// Floats a query of the workspace, in the order in which index_loss lays them out.
struct Parts {
  int64_t lists, strip, coefficients, products, places;
  int64_t all() const { return lists + 3 * strip + coefficients + products + places; }
};
Parts parts_of(const IndexLossRun& job) {
  Parts parts{job.selected ? 0 : job.width, job.width, 0, 0, 0};
  if (job.coefficient != 0)
    parts.coefficients = job.heads * job.width, parts.products = job.width * job.dim, parts.places = job.length;
  return parts;
}

}  // namespace

int64_t index_loss_workspace(const IndexLossRun& job, int64_t chunk) {
  return chunk * parts_of(job).all() + (job.coefficient != 0 ? job.rows * job.dim : 0);
}

void index_loss(const IndexLossRun& job, Stream stream) {
  if (job.rows == 0) return;
  const Parts parts = parts_of(job);
  float* next = job.workspace;
  const auto take = [&](int64_t floats) { return std::exchange(next, next + floats); };
  int32_t* const lists = reinterpret_cast<int32_t*>(take(job.chunk * parts.lists));
  Chunk chunk{};
  chunk.scores = take(job.chunk * parts.strip), chunk.mass = take(job.chunk * parts.strip);
  chunk.p = take(job.chunk * parts.strip);
  float *const coefficients = take(job.chunk * parts.coefficients), *const products = take(job.chunk * parts.products);
  int32_t* const places = reinterpret_cast<int32_t*>(take(job.chunk * parts.places));
  float* const dk = next;
  if (job.coefficient != 0) {
    launch(zero_kernel, blocks(job.rows * job.dim, kLossThreads), kLossThreads, 0, stream, dk, job.rows * job.dim);
    check_launch("index_loss, clear");
  }

  for (chunk.begin = 0; chunk.begin < job.rows; chunk.begin = chunk.end) {
    chunk.end = std::min(chunk.begin + job.chunk, job.rows);
    const int64_t rows = chunk.end - chunk.begin;
    chunk.width = job.width;
    if (job.selected) {
      chunk.lists = job.selected + chunk.begin * job.width;
    } else {
      chunk.lists = lists;
      list_candidates(job.start, chunk.begin, chunk.end, job.length, chunk.width, lists, stream);
    }
    const ListedSums scores{job.length, job.heads,    job.heads > 0 ? 1 : 0, job.dim, 1.0f,         job.q,
                            job.k,      job.q_stride, job.k_stride,          job.w,   job.w_stride, nullptr};
    listed_sums(job.type, scores, chunk, chunk.scores, stream);
    for (int64_t i = 0; i < job.source_count; ++i) {
      const AttentionMass& s = job.sources[i];
      const ListedSums mass{job.length, s.heads, s.kv_heads, s.dim, s.scale * kLog2E, s.q, s.k, s.q_stride,
                            s.k_stride, nullptr, 0,          s.lse};
      listed_sums(s.type, mass, chunk, chunk.mass, stream);
      launch(normalise_kernel, blocks(rows, 1), kLossThreads, 0, stream, chunk,
             1.0f / static_cast<float>(job.source_count), i > 0);
      check_launch("index_loss, normalise");
    }
    if (!job.selected && job.topk > 0) {
      launch(recall_kernel, blocks(rows, 1), kTopkThreads, 0, stream, job, chunk);
      check_launch("index_loss, recall");
    }
    launch(loss_kernel, blocks(rows, 1), kLossThreads, 0, stream, job, chunk);
    check_launch("index_loss");
    if (job.coefficient == 0) continue;

    by_type(job.type, [&](auto t) {
      by_width(job.dim, [&](auto width) {
        by_group<4>(job.heads, [&](auto heads) {
          constexpr int kHeads = decltype(heads)::value;
          const int64_t units = rows * HeadSet<kHeads>::per_row(job.heads, 1);
          launch(index_gradient_kernel<decltype(t), decltype(width)::value, kHeads>, blocks(units, kListWarps),
                 kListThreads, 0, stream, job, chunk, units, coefficients);
        });
      });
    });
    check_launch("index_loss, gradient");
    KeySums keys;
    keys.type = job.type, keys.begin = chunk.begin, keys.end = chunk.end, keys.length = job.length;
    keys.heads = job.heads, keys.kv_heads = 1, keys.dim = job.dim;
    keys.selected = chunk.lists, keys.width = chunk.width, keys.coefficients = coefficients;
    keys.x = job.q, keys.x_stride = job.q_stride;
    keys.places = places, keys.products = products, keys.sums = dk;
    place_keys(keys, stream);
    add_key_sums(keys, stream);
  }
  if (job.coefficient != 0) write_rows(job.type, dk, job.rows, job.dim, job.dk, job.dim, stream);
}

}  // namespace cairn::kernels::cuda
