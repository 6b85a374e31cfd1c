// The vector pieces of sparse attention over raw pointers; sparse_attention.cpp splits the work over threads. Keys and
// values of one kv head lie beside one another, [length, keys + values], each padded with zeros to a multiple of 16:
// one place in memory serves a listed position, and one kv head stays in a core's cache.
#pragma once

#include <cstdint>

#include "models/kernels/cpu/simd_attention.h"

namespace cairn::kernels {

struct SparseCall {
  int64_t heads = 0, group = 0;        // query heads; of them those that read one kv head
  int64_t key_dim = 0, value_dim = 0;  // features
  int64_t keys = 0, values = 0;        // padded to multiples of 16
  int64_t width = 0;                   // entries of a row of `selected`
  float q_scale = 1, dq_scale = 1, dk_scale = 1;
  int64_t row() const { return keys + values; }
};

// Rows [0, count) of one kv head -> packed [count, row()].
void sparse_pack(const SparseCall& call, Rows k, Rows v, int64_t count, float* packed);

// One kv head of one sequence; everything at the sequence's first row and the first head of the group.
struct SparseForward {
  const float* packed;
  Rows q;
  const int32_t *selected, *count;  // [*, width], [*] entries
  // [*, blocks + 1]: entries of a row's list that stand before each border of key blocks.
  const int32_t* splits;
  int64_t blocks, block_rows;  // rows before block * block_rows list nothing in a block; 0: not known
  float* out;
  int64_t out_stride;
  float* lse;  // head h of the group at lse + h * lse_stride
  int64_t lse_stride;
};
// Rows [begin, end), key block by key block: so many rows at a time that reading a block once pays, but memory for
// (keys + values) floats of each row and head.
void sparse_forward_rows(const SparseCall& call, const SparseForward& job, int64_t begin, int64_t end);

struct SparseBackward {
  const float* packed;
  Rows q, dout, out;
  const int32_t* selected;
  const int32_t* splits;  // as above
  int64_t blocks, block_rows;
  const float* lse;
  int64_t lse_stride;
  float* dq;
  int64_t dq_stride;
  float* sums;  // [length, row()]: gradients of packed keys (without dk_scale) and values are added here
};
// Likewise; (2 keys + values) floats of each row and head.
void sparse_backward_rows(const SparseCall& call, const SparseBackward& job, int64_t begin, int64_t end);

// Sum over pieces p, in order, of sums[p * piece_stride ...], rows [begin, end) -> dk (times dk_scale) and dv, at the
// sequence's first row.
void sparse_join(const SparseCall& call, const float* sums, int64_t pieces, int64_t piece_stride, int64_t begin,
                 int64_t end, float* dk, int64_t dk_stride, float* dv, int64_t dv_stride);

}  // namespace cairn::kernels
