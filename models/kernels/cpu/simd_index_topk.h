// The vector pieces of the lightning indexer's choice over raw pointers; index_topk.cpp splits the work over threads.
#pragma once

#include <cstdint>

#include "models/kernels/cpu/simd_attention.h"

namespace cairn::kernels {

constexpr int64_t kIndexRows = 16;  // query rows that share a key tile while it is near; changes no bits

struct IndexCall {
  int64_t heads = 0, dim = 0;
  int64_t topk = 0, sinks = 0, window = 0;
  int64_t width = 0;                       // columns of `chosen`
  const float* keys = nullptr;             // transposed tiles [dim, 64] of the sequence
  const float *q = nullptr, *w = nullptr;  // [*, heads * dim] and [*, heads] at strides
  int64_t q_stride = 0, w_stride = 0;
  const int32_t* start = nullptr;  // [*] first position of each row's segment; never falls
  int64_t position = 0;            // of row 0 of q, w, start and chosen
  int32_t* chosen = nullptr;       // [*, width]
};

// Rows [begin, end), at most kIndexRows.
void index_choose(const IndexCall& call, int64_t begin, int64_t end);

}  // namespace cairn::kernels
