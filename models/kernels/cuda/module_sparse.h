// Entries of the table (table.h) for sparse attention and its indexer, as module_sparse.cpp has them.
#pragma once

#include "models/kernels/index_loss.h"
#include "models/kernels/sparse_attention.h"

namespace cairn::kernels::cuda {

AttentionOutput sparse_attention_forward_on(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                            const at::Tensor& selected, const AttentionOptions& options);
void sparse_attention_backward_on(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  const at::Tensor& out, const at::Tensor& lse, const at::Tensor& selected,
                                  const AttentionOptions& options, const at::Tensor& dq, const at::Tensor& dk,
                                  const at::Tensor& dv);
at::Tensor sparse_attention_decode_on(const at::Tensor& q, const at::Tensor& cache_k, const at::Tensor& cache_v,
                                      const at::Tensor& selected, int64_t length, const AttentionOptions& options);
at::Tensor attention_lse_on(const at::Tensor& q, const at::Tensor& k, const AttentionOptions& options);
at::Tensor index_topk_on(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const IndexOptions& options);
at::Tensor index_topk_decode_on(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, int64_t length,
                                const IndexOptions& options);
IndexLoss index_loss_on(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const at::Tensor& selected,
                        const std::vector<MassSource>& sources, const IndexOptions& options, double coefficient);

}  // namespace cairn::kernels::cuda
