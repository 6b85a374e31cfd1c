// The vector piece of attention over pages: one kv head of one sequence. paged_attention.cpp splits the work.
#pragma once

#include "models/kernels/cpu/simd_attention.h"

namespace cairn::kernels {

struct PagedHead {
  const float* q;                // [dim, 64], already scaled: column r is query row r of the group
  int64_t rows;                  // at most 64
  const float* keys;             // of this kv head in page 0: tiles [dim, W] one after another
  const float* values;           // likewise: [S, padded]
  int64_t key_page, value_page;  // from one page to the next, in floats
  int64_t page_size;             // S
  const int32_t* table;          // page of positions [i * S, (i + 1) * S)
  int64_t first, length;         // positions [first, length) are seen
  const float* sink;             // of each row times log2(e), or null
  float* out;                    // [rows, dim]
};
// Tiles of 64 keys from the start of the sequence, in ascending order, each by itself: the bits of
// attention_forward_block.
void paged_attention_head(const AttentionCall& call, const PagedHead& head);

}  // namespace cairn::kernels
