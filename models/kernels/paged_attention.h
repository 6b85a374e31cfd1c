// Decoding many sequences at once over keys and values that lie in pages (vLLM's PagedAttention, Kwon et al. 2023).
#pragma once

#include <ATen/ATen.h>

#include "models/kernels/attention.h"
#include "models/kernels/key_value_pages.h"

namespace cairn::kernels {

// Pages that nothing has been written to. Throws std::invalid_argument for a page size as above that it is not.
KeyValuePages make_pages(int64_t pages, int64_t kv_heads, int64_t dim, int64_t page_size,
                         const at::TensorOptions& options);

// k, v [N, K, D], any row stride: row n goes to slots[n] = page * S + row in the page; -1: nowhere. slots int64 [N] on
// the CPU.
void paged_store(const KeyValuePages& pages, const at::Tensor& k, const at::Tensor& v, const at::Tensor& slots);

// q [B, H, D], the newest row of each of B sequences; table int32 [B, M] of page numbers; lengths int32 [B]: rows of a
// sequence in the pages, the newest included, 0: no sequence, whose result is zero. -> [B, H * D]. Window, soft cap and
// sinks are those of attention_forward, and so are the bits of a row, whatever the page size, the other sequences and
// the number of threads. table and lengths lie on the CPU.
at::Tensor paged_attention(const at::Tensor& q, const KeyValuePages& pages, const at::Tensor& table,
                           const at::Tensor& lengths, const AttentionOptions& options);

// Throws std::invalid_argument where a table names pages that are not there for the rows that `lengths` says, or where
// shapes or types do not fit.
void check_paged(const at::Tensor& q, const KeyValuePages& pages, const at::Tensor& table, const at::Tensor& lengths);

}  // namespace cairn::kernels
