// Keys and values of many sequences, in pages (vLLM's PagedAttention, Kwon et al. 2023): a pool of one layer.
#pragma once

#include <ATen/core/Tensor.h>

namespace cairn::kernels {

// A page holds S rows of every kv head. Position s of a sequence lies in row s % S of the page that the sequence's
// table names at s / S. Keys are kept transposed in tiles of W = min(S, 64), as the products read them. S is 16, 32 or
// a multiple of 64, so that the tiles of 64 keys that attention combines are made of whole parts of pages.
struct KeyValuePages {
  at::Tensor keys;    // [pages, K, S / W, D, W]
  at::Tensor values;  // [pages, K, S, P]: P is D rounded up to 16, zero beyond D

  int64_t page_size() const { return values.size(2); }
};

}  // namespace cairn::kernels
