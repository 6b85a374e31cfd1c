// The vector pieces of attention over raw pointers. attention.cpp splits the work over threads and calls these.
// Keys are taken in tiles of 64 that start at multiples of 64 in their sequence, whoever asks: a row's softmax combines
// the tiles in ascending order, each computed by itself, so training, prefill and decoding give a row the same bits.
#pragma once

#include <cstdint>

namespace cairn::kernels {

constexpr int64_t kKeyTile = 64;     // part of the numbers: changing it changes bits
constexpr int64_t kQueryBlock = 64;  // rows that one task takes; changes no bits
constexpr int64_t kDecodeRows = 64;  // query rows (new rows x heads of one kv head) that one decode tile takes

struct AttentionCall {
  int64_t length = 0;  // rows of a sequence
  int64_t heads = 0, kv_heads = 0, dim = 0;
  int64_t padded = 0;  // dim rounded up to 16
  int64_t tiles = 0;   // key tiles of a sequence
  float q_scale = 1;   // q is multiplied by this: then q k is the score times log2(e), or the argument of tanh
  float cap = 0;       // > 0: score times log2(e) = cap * tanh(q k)
  float dq_scale = 1, dk_scale = 1;
  const float* sinks = nullptr;        // [H] times log2(e), or null
  const int32_t* first_key = nullptr;  // [N] first position of its sequence that a row sees; never falls in a sequence
  // Dropout: word >= threshold is kept and scaled by keep; 0 = off.
  uint32_t drop_threshold = 0;
  float keep = 1;
  uint32_t key[2] = {0, 0};  // Philox key
  uint64_t stream = 0;
  int64_t first_row = 0;  // global row of row 0
};

// Rows of one head, strided: row n at data + n * stride.
struct Rows {
  const float* data;
  int64_t stride;
};

// `count` rows of `dim` -> plain [count, padded] (columns beyond dim zero) and transposed tiles [dim, 64] (columns
// beyond count zero); count <= 64. Either may be null. Everything is multiplied by scale.
void attention_pack(Rows rows, int64_t count, int64_t dim, int64_t padded, float scale, float* plain,
                    float* transposed);

// Rows [block * kQueryBlock, ...) of head `head` of the sequence whose first row is `row0`. keys: transposed tiles of
// the kv head's sequence; values: plain [length, padded]. out: first row of the sequence at this head, stride H * D;
// lse [length].
void attention_forward_block(const AttentionCall& call, int64_t row0, int64_t head, int64_t block, Rows q,
                             const float* keys, const float* values, float* out, float* lse);

// Everything of one kv head of one sequence that the backward pass reads, and its scratch sums.
struct BackwardPiece {
  int64_t row0;  // first row of the sequence
  int64_t kv_head;
  int64_t begin, end;          // (head of the group) * blocks + block, in order
  const float *keys, *values;  // transposed tiles
  const float* keys_plain;     // [length, padded]
  Rows q, dout, out;           // at row 0 of the batch, head 0
  const float* lse;            // [H, length] of the sequence
  float* dq;                   // at row 0 of the batch, head 0
  int64_t dq_stride;
  float *dk, *dv;  // [length, padded] sums, zero at first; written where the piece sees keys
};
void attention_backward_piece(const AttentionCall& call, const BackwardPiece& piece);

// Sum over pieces p, in order, of sums[p * piece_stride + row * padded ...], times scale, rows [begin, end) -> to.
void attention_join(const float* sums, int64_t pieces, int64_t piece_stride, int64_t begin, int64_t end, int64_t dim,
                    int64_t padded, float scale, float* to, int64_t stride);

// One key tile of one kv head for `rows` query rows. q: transposed [dim, 64], already scaled; row r sees cached rows
// first[r] <= s <= last[r]. Writes the tile's own softmax: maximum (log2) and sum [64], out [rows, padded] not divided.
void attention_decode_tile(const AttentionCall& call, int64_t rows, const float* q, Rows k, Rows v, int64_t tile,
                           int64_t keys, const int32_t* first, const int32_t* last, float* maximum, float* sum,
                           float* out);
// Combines tiles [0, tiles) of one row group in ascending order (tile t of `out` at t * tile_stride); row r goes to
// to[r], whose softmax begins with sink[r] (null: there are none).
void attention_decode_join(const AttentionCall& call, int64_t rows, int64_t tiles, const float* maximum,
                           const float* sum, const float* out, int64_t tile_stride, const float* sink,
                           float* const* to);

}  // namespace cairn::kernels
