// The router (models/kernels/router.h): a warp is a row. Never run on a GPU so far.
#include <limits>

#include "models/kernels/cuda/device.cuh"
#include "models/kernels/cuda/launchers_experts.h"

namespace cairn::kernels::cuda {
namespace {

constexpr int kRows = 4;  // of a block
constexpr int kSigmoid = 1, kSoftmaxTopk = 2;
constexpr float kNothing = -std::numeric_limits<float>::infinity();

__device__ inline float warp_max(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const float other = __shfl_xor_sync(0xFFFFFFFFu, value, distance);
    value = other > value ? other : value;
  }
  return value;
}
__device__ inline uint64_t warp_max(uint64_t value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const uint64_t other = __shfl_xor_sync(0xFFFFFFFFu, value, distance);
    value = other > value ? other : value;
  }
  return value;
}

// Numbers in the order of floats, never 0; NaN is the least, 0 and -0 are equal.
__device__ inline uint32_t ordered(float x) {
  if (x != x) return 1;
  const uint32_t bits = __float_as_uint(x == 0.0f ? 0.0f : x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
// Greater for the greater value, of equal ones for the lower index.
__device__ inline uint64_t ranked(float value, int64_t index) {
  return static_cast<uint64_t>(ordered(value)) << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(index));
}
__device__ inline int32_t index_of(uint64_t rank) {
  return static_cast<int32_t>(0xFFFFFFFFu - static_cast<uint32_t>(rank));
}

// The best of rank[0, n) (0: taken), which is then taken. All lanes of the warp call it and get it.
__device__ inline int32_t take_best(uint64_t* rank, int64_t n) {
  uint64_t best = 0;
  for (int64_t i = threadIdx.x; i < n; i += 32) best = rank[i] > best ? rank[i] : best;
  const int32_t index = index_of(warp_max(best));
  __syncwarp();
  if (threadIdx.x == 0) rank[index] = 0;
  __syncwarp();
  return index;
}

// Of a row, in shared memory.
struct Memory {
  uint64_t *rank, *group_rank;  // [E], [groups]
  float* scores;                // [E]
  int32_t* chosen;              // [k]
  __device__ Memory(const Route& job) {
    const int64_t words = job.experts * 3 + job.groups * 2 + job.topk + (job.experts + job.topk) % 2;
    rank = dynamic_shared<uint64_t>() + threadIdx.y * (words / 2);
    group_rank = rank + job.experts;
    scores = reinterpret_cast<float*>(group_rank + job.groups);
    chosen = reinterpret_cast<int32_t*>(scores + job.experts);
  }
};
size_t memory_of(const Route& job) {
  const int64_t words = job.experts * 3 + job.groups * 2 + job.topk + (job.experts + job.topk) % 2;
  return static_cast<size_t>(words) * sizeof(float) * kRows;
}

// Softmax of n numbers into p, by a warp; returns the log of the sum of their exponentials.
__device__ inline float softmax(const float* x, int64_t n, float* p) {
  float most = kNothing;
  for (int64_t i = threadIdx.x; i < n; i += 32) most = x[i] > most ? x[i] : most;
  most = warp_max(most);
  float sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += 32) sum += p[i] = expf(x[i] - most);
  sum = row_sum<32>(sum);
  for (int64_t i = threadIdx.x; i < n; i += 32) p[i] = p[i] / sum;
  return most + logf(sum);
}

// Only experts of the best groups keep their rank; the others come after all of them, in order.
__device__ inline void choose_groups(const Route& job, const Memory& memory) {
  const int64_t width = job.experts / job.groups;
  for (int64_t g = threadIdx.x; g < job.groups; g += 32) {
    // The two greatest; ranks say less than their values, so those are read back from them.
    uint64_t first = 0, second = 0;
    for (int64_t e = g * width; e < (g + 1) * width; ++e) {
      const uint64_t rank = memory.rank[e];
      if (rank > first)
        second = first, first = rank;
      else if (rank > second)
        second = rank;
    }
    const auto value = [](uint64_t rank) {
      const uint32_t bits = static_cast<uint32_t>(rank >> 32);
      return bits <= 1 ? kNothing : __uint_as_float(bits & 0x80000000u ? bits ^ 0x80000000u : ~bits);
    };
    memory.group_rank[g] = ranked(value(first) + value(second), g);
  }
  __syncwarp();
  for (int64_t i = 0; i < job.topk_groups; ++i) take_best(memory.group_rank, job.groups);
  for (int64_t e = threadIdx.x; e < job.experts; e += 32)
    if (memory.group_rank[e / width] != 0) memory.rank[e] = ranked(kNothing, e);
  __syncwarp();
}

__global__ void __launch_bounds__(32 * kRows) route_kernel(Route job) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.y, E = job.experts, k = job.topk;
  if (n >= job.rows) return;  // a whole warp
  const Memory memory(job);
  const float* logits = job.logits + n * E;
  const float lse = softmax(logits, E, memory.scores);
  if (threadIdx.x == 0) job.lse[n] = lse;
  for (int64_t e = threadIdx.x; e < E; e += 32) {  // a lane reads what it wrote itself
    if (job.scoring == kSigmoid) memory.scores[e] = 1.0f / (1.0f + expf(-logits[e]));
    const float score = memory.scores[e], choice = job.scoring == kSoftmaxTopk ? logits[e] : score;
    job.scores[n * E + e] = score;
    memory.rank[e] = ranked(job.bias ? choice + job.bias[e] : choice, e);
  }
  __syncwarp();
  if (job.groups > 1) choose_groups(job, memory);
  for (int64_t j = 0; j < k; ++j) {
    const int32_t e = take_best(memory.rank, E);
    if (threadIdx.x == 0) memory.chosen[j] = job.chosen[n * k + j] = e;
  }
  __syncwarp();

  float* weights = job.weights + n * k;
  if (job.scoring == kSoftmaxTopk) {
    float most = kNothing, sum = 0;
    for (int64_t j = 0; j < k; ++j) {
      const float logit = logits[memory.chosen[j]];
      most = logit > most ? logit : most;
    }
    for (int64_t j = 0; j < k; ++j) sum += expf(logits[memory.chosen[j]] - most);
    for (int64_t j = threadIdx.x; j < k; j += 32) weights[j] = expf(logits[memory.chosen[j]] - most) / sum * job.scale;
    return;
  }
  float sum = 0;  // every lane, in order
  for (int64_t j = 0; j < k; ++j) sum += memory.scores[memory.chosen[j]];
  if (job.scoring == kSigmoid) sum += 1e-20f;
  const float factor = job.normalise ? job.scale / sum : job.scale;
  for (int64_t j = threadIdx.x; j < k; j += 32) weights[j] = memory.scores[memory.chosen[j]] * factor;
}

__global__ void __launch_bounds__(32 * kRows) route_backward_kernel(Route job) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.y, E = job.experts, k = job.topk;
  if (n >= job.rows) return;
  float* d = Memory(job).scores;  // gradient of the scores, then of the logits
  const float *scores = job.scores + n * E, *weights = job.weights + n * k, *dweights = job.dweights + n * k;
  const float* balance = job.balance ? job.balance + n / job.sequence_rows * E : nullptr;
  const int32_t* chosen = job.chosen + n * k;
  const bool sigmoid = job.scoring == kSigmoid, chosen_alone = job.scoring == kSoftmaxTopk;

  // What the losses of balance say of the scores.
  float mean = 0, total = 1;
  if (balance && sigmoid) {
    float sum = 0, dot = 0;
    for (int64_t e = threadIdx.x; e < E; e += 32) sum += scores[e], dot = fmaf(scores[e], balance[e], dot);
    total = row_sum<32>(sum), mean = row_sum<32>(dot) / total;
  }
  for (int64_t e = threadIdx.x; e < E; e += 32) d[e] = balance ? (balance[e] - mean) / total : 0.0f;
  __syncwarp();

  // What the weights of the chosen say of them; sums by every lane, in order.
  float dot = 0, sum = 0;
  for (int64_t j = 0; j < k; ++j) dot = fmaf(dweights[j], weights[j], dot), sum += scores[chosen[j]];
  if (!chosen_alone) {
    if (sigmoid) sum += 1e-20f;
    for (int64_t j = threadIdx.x; j < k; j += 32)
      d[chosen[j]] += job.normalise ? (dweights[j] * job.scale - dot) / sum : dweights[j] * job.scale;
    __syncwarp();
  }

  // Through the scores to the logits.
  if (sigmoid) {
    for (int64_t e = threadIdx.x; e < E; e += 32) d[e] = d[e] * scores[e] * (1.0f - scores[e]);
  } else if (!chosen_alone || balance) {
    float along = 0;
    for (int64_t e = threadIdx.x; e < E; e += 32) along = fmaf(d[e], scores[e], along);
    along = row_sum<32>(along);
    for (int64_t e = threadIdx.x; e < E; e += 32) d[e] = (d[e] - along) * scores[e];
  }
  __syncwarp();
  if (chosen_alone)
    for (int64_t j = threadIdx.x; j < k; j += 32) d[chosen[j]] += weights[j] * (dweights[j] - dot / job.scale);
  __syncwarp();
  const float lse = job.lse[n], factor = 2.0f * job.z * lse;
  for (int64_t e = threadIdx.x; e < E; e += 32) {
    const float p = job.z == 0.0f ? 0.0f : (sigmoid ? expf(job.logits[n * E + e] - lse) : scores[e]);
    job.dlogits[n * E + e] = job.z == 0.0f ? d[e] : fmaf(p, factor, d[e]);
  }
}

void start(void (*kernel)(Route), const Route& job, const char* name, Stream stream) {
  if (job.rows == 0) return;
  if (memory_of(job) > 96 * 1024)  // what all of sm_80, 90 and 100 have, twice over on most
    throw std::invalid_argument(std::string("[") + name + "] " + std::to_string(job.experts) +
                                " experts: a row does not fit into shared memory");
  launch(kernel, blocks(job.rows, kRows), dim3(32, kRows), memory_of(job), stream, job);
  check_launch(name);
}

}  // namespace

void route(const Route& job, Stream stream) { start(route_kernel, job, "route", stream); }
void route_backward(const Route& job, Stream stream) { start(route_backward_kernel, job, "route_backward", stream); }

}  // namespace cairn::kernels::cuda
