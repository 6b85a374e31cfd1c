// The vector pieces of the indexer's loss over raw pointers; index_loss.cpp splits the work over threads.
#pragma once

#include <cstdint>

#include "models/kernels/cpu/simd_attention.h"

namespace cairn::kernels {

struct IndexerRows {                       // of one sequence
  int64_t heads = 0, dim = 0, padded = 0;  // padded: dim rounded up to 16
  const float *q = nullptr, *w = nullptr;  // [*, heads * dim] and [*, heads] at strides
  int64_t q_stride = 0, w_stride = 0;
  const float* keys = nullptr;       // plain [length, padded]
  const float* key_tiles = nullptr;  // transposed tiles [dim, 64]
  const int32_t* start = nullptr;    // [length] first position of each row's segment
  float* kl = nullptr;               // [length]
  // Gradients of coefficient * kl; coefficient 0: none is written.
  float coefficient = 0;
  float *dq = nullptr, *dw = nullptr;  // contiguous
  float* dk = nullptr;                 // [length, padded] sums, zero at first
};

// ---- over listed keys. Rows [begin, end) of a sequence; rows of mass and p are numbered from `begin` on.

struct ListedMass {  // one kv head
  int64_t group = 0, dim = 0, padded = 0;
  float scale = 1;              // on q: score in units of log2
  const float* keys = nullptr;  // [length, padded]
  Rows q{};                     // at the sequence's first row, first head of the group
  const float* lse = nullptr;   // [group, length], natural
  int64_t lse_stride = 0;
  const int32_t *selected = nullptr, *count = nullptr;
  int64_t width = 0;
};
// mass[t - begin][i] += sum over the group of exp(score - lse); ld at least width rounded up to 16, plus 16.
void index_listed_mass(const ListedMass& job, int64_t begin, int64_t end, float* mass, int64_t ld);
// share[t * stride + h] = sum over the list of exp(score - lse) of head h of the group.
void index_listed_share(const ListedMass& job, int64_t begin, int64_t end, float* share, int64_t stride);
// p[r] (+)= weight * mass[r] / its sum, for rows [0, rows).
void index_normalise(const float* mass, int64_t rows, int64_t ld, const int32_t* count, float weight, bool add,
                     float* p);
void index_listed_loss(const IndexerRows& job, const int32_t* selected, const int32_t* count, int64_t width,
                       const float* p, int64_t ld, int64_t begin, int64_t end);

// ---- over all candidates, blocks of 64 query rows.

struct DenseMass {
  int64_t heads = 0, kv_heads = 0, dim = 0;
  float scale = 1;
  const float* key_tiles = nullptr;  // [kv_heads][tiles][dim, 64]
  int64_t head_stride = 0;           // between kv heads
  Rows q{};                          // at the sequence's first row
  const float* lse = nullptr;        // [heads, length]
};
struct DenseRecall {
  int64_t topk = 0, sinks = 0, window = 0;   // topk 0: none
  float *recall = nullptr, *best = nullptr;  // [length], written for rows with more than topk candidates
};
// strips: floats, 64 * ld * (sources > 1 ? 3 : 2), ld = tiles * 64 of the sequence.
void index_dense_block(const IndexerRows& job, const DenseMass* sources, int64_t source_count,
                       const DenseRecall& recall, int64_t length, int64_t block, float* strips, int64_t ld);

}  // namespace cairn::kernels
