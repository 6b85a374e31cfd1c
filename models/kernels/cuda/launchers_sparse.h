// Launchers of sparse attention and of its indexer; what launchers.h says of all launchers holds here. Never run on a
// GPU so far: tests/models/cuda_emulated_sparse_test.cpp runs these very kernels on a CPU, block by block.
//
// Workspaces are asked for in floats and lie in device memory; how large they are changes no bits.
#pragma once

#include "models/kernels/cuda/launchers.h"

namespace cairn::kernels::cuda {

constexpr int64_t kWidestRow = 576;  // features of a head: 512 + 64 of the absorbed form of latent attention

// ---- sparse_attention.cu (models/kernels/sparse_attention.h) ----
// Rows n = 0, 1, ... are `length` queries a sequence; keys of a sequence are `key_length` rows. Heads follow one
// another in a row.
struct SparseAttention {
  Type type;
  int64_t begin = 0, rows = 0;  // rows [begin, begin + rows); the lists begin with row `begin`
  int64_t length = 0, key_length = 0;
  int64_t heads = 0, kv_heads = 0, key_dim = 0, value_dim = 0;
  float scale = 1;
  const void *q = nullptr, *k = nullptr, *v = nullptr;
  int64_t q_stride = 0, k_stride = 0, v_stride = 0;  // of rows, in elements
  const int32_t* selected = nullptr;                 // [rows, width]
  int64_t width = 0;
  void* out = nullptr;   // from row 0 on, [*, heads * value_dim]; value_dim may be 0 where lse is all that is asked
  float* lse = nullptr;  // [sequences, heads, length]; forward: may be null
};
void sparse_attention_forward(const SparseAttention& job, Stream stream);

// `out` and `lse` as the forward pass left them; all rows (begin is 0), key_length is length.
struct SparseAttentionBackward {
  SparseAttention forward;
  const void* dout = nullptr;  // [rows, heads * value_dim]
  void *dq = nullptr, *dk = nullptr, *dv = nullptr;
  int64_t dq_stride = 0, dk_stride = 0, dv_stride = 0;
  float* workspace = nullptr;
  int64_t chunk = 0;  // queries whose probabilities are held at once, 1 or more
};
int64_t sparse_backward_workspace(const SparseAttention& job, int64_t chunk);
void sparse_attention_backward(const SparseAttentionBackward& job, Stream stream);

// ---- key_sums.cu: sums over the queries that list a key ----
// sums[key row, kv head] += sum over queries n (ascending) of sum over the heads h of the kv head (ascending) of
// coefficients[n, h, i] * x[n, h], where list n has the key at place i. Rows [begin, end) of the queries; coefficients
// and selected begin with row `begin`.
struct KeySums {
  Type type;  // of x
  int64_t begin = 0, end = 0, length = 0;
  int64_t heads = 0, kv_heads = 0, dim = 0;
  const int32_t* selected = nullptr;    // [end - begin, width]
  const float* coefficients = nullptr;  // [end - begin, heads, width]
  int64_t width = 0;
  const void* x = nullptr;  // from row 0 on, heads one after another
  int64_t x_stride = 0;
  int32_t* places = nullptr;  // [end - begin, length], of place_keys
  float* products = nullptr;  // workspace [end - begin, kv_heads, width, dim]
  float* sums = nullptr;      // [all rows, kv_heads, dim]
};
// places[n - begin, s] = where list n has key s, -1 where it has not.
void place_keys(const KeySums& job, Stream stream);
void add_key_sums(const KeySums& job, Stream stream);

// out[r, c] = x[r, c], rounded to the type.
void write_rows(Type type, const float* x, int64_t rows, int64_t columns, void* out, int64_t stride, Stream stream);

// ---- index_topk.cu (models/kernels/index_topk.h) ----
// start[n] = the first position, in its sequence, of row n's segment; segments [rows] or null: 0.
void segment_starts(const int32_t* segments, int64_t rows, int64_t length, int32_t* start, Stream stream);

// lists[n - begin, i] = start[n] + i where that is no later than row n's own position, -1 else: all candidates.
void list_candidates(const int32_t* start, int64_t begin, int64_t end, int64_t length, int64_t width, int32_t* lists,
                     Stream stream);

// Query r of a sequence stands at position first_position + r; keys of a sequence are key_length rows.
struct IndexTopk {
  Type type;
  int64_t sequences = 1, length = 0, key_length = 0, first_position = 0;
  int64_t heads = 0, dim = 0;
  const void *q = nullptr, *k = nullptr, *w = nullptr;  // [*, heads, dim], [*, dim], [*, heads]
  int64_t q_stride = 0, k_stride = 0, w_stride = 0;
  const int32_t* start = nullptr;  // [rows] of segment_starts
  int64_t topk = 0, sinks = 0, window = 0;
  int32_t* selected = nullptr;  // [rows, min(topk, key_length)]
  float* workspace = nullptr;   // [chunk, key_length] scores
  int64_t chunk = 0;            // queries whose scores are held at once, 1 or more
};
void index_topk(const IndexTopk& job, Stream stream);

// ---- index_loss.cu (models/kernels/index_loss.h) ----
struct AttentionMass {
  Type type;
  int64_t heads = 0, kv_heads = 0, dim = 0;
  float scale = 1;
  const void *q = nullptr, *k = nullptr;
  int64_t q_stride = 0, k_stride = 0;
  const float* lse = nullptr;  // [sequences, heads, length]
};
struct IndexLossRun {
  Type type;  // of q, k, w and their gradients
  int64_t rows = 0, length = 0, heads = 0, dim = 0;
  const void *q = nullptr, *k = nullptr, *w = nullptr;
  int64_t q_stride = 0, k_stride = 0, w_stride = 0;
  const int32_t* start = nullptr;     // [rows]
  const int32_t* selected = nullptr;  // [rows, width], or null: all candidates, and width is length
  int64_t width = 0;
  const AttentionMass* sources = nullptr;  // host memory
  int64_t source_count = 0;
  float coefficient = 0;                             // 0: no gradients
  void *dq = nullptr, *dk = nullptr, *dw = nullptr;  // contiguous
  float* kl = nullptr;                               // [rows]
  int64_t topk = 0, sinks = 0, window = 0;           // of the recall; topk 0: none
  float *recall = nullptr, *best_recall = nullptr;   // [rows], 0 where there are topk candidates or fewer
  float* workspace = nullptr;
  int64_t chunk = 0;  // queries whose scores are held at once, 1 or more
};
int64_t index_loss_workspace(const IndexLossRun& job, int64_t chunk);
void index_loss(const IndexLossRun& job, Stream stream);

}  // namespace cairn::kernels::cuda
