#include "models/kernels/ref/sparse_attention.h"

#include <limits>

#include "models/kernels/ref/wide.h"

namespace cairn::kernels::ref {
namespace {

// [B * T, K, D] -> [B, H, T, D], every kv head repeated for its H / K query heads.
at::Tensor by_head(const at::Tensor& x, int64_t batch, int64_t heads) {
  const int64_t length = x.size(0) / batch, group = heads / x.size(1);
  const auto y = wide(x).reshape({batch, length, x.size(1), x.size(2)}).transpose(1, 2);  // [B, K, T, D]
  return group == 1 ? y : y.repeat_interleave(group, 1);
}

// [B, H, M, L], -inf where not listed.
at::Tensor scores_of(const at::Tensor& q, const at::Tensor& k, const at::Tensor& selected, int64_t batch, int64_t keys,
                     double scale) {
  const int64_t heads = q.size(1);
  const auto scores = at::matmul(by_head(q, batch, heads), by_head(k, batch, heads).transpose(-1, -2)) * scale;
  const auto mask = selected_mask(selected, batch, keys).unsqueeze(1);
  return scores.masked_fill(mask.logical_not(), -std::numeric_limits<double>::infinity());
}

// A row without a key gives zeros, not NaN.
at::Tensor softmax(const at::Tensor& scores) {
  const auto nothing = scores.detach().eq(-std::numeric_limits<double>::infinity()).all(-1, /*keepdim=*/true);
  return at::softmax(scores.masked_fill(nothing, 0.0), -1).masked_fill(nothing, 0.0);
}

at::Tensor rows_of(const at::Tensor& out, const at::Tensor& q) {  // [B, H, T, E] -> [B * T, H * E]
  return out.transpose(1, 2).reshape({q.size(0), q.size(1) * out.size(3)}).to(q.scalar_type());
}

}  // namespace

at::Tensor selected_mask(const at::Tensor& selected, int64_t batch, int64_t keys) {
  const int64_t rows = selected.size(0) / batch;
  const auto index = selected.to(at::kLong).reshape({batch, rows, selected.size(1)});
  // A column more, which receives what is not there.
  const auto mask = at::zeros({batch, rows, keys + 1}, selected.options().dtype(at::kBool));
  return mask.scatter(2, index.masked_fill(index.lt(0), keys), true).narrow(2, 0, keys);
}

at::Tensor sparse_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& selected,
                            const AttentionOptions& options) {
  const auto p = sparse_attention_probabilities(q, k, selected, options);
  return rows_of(at::matmul(p, by_head(v, options.batch, q.size(1))), q);
}

at::Tensor sparse_attention_probabilities(const at::Tensor& q, const at::Tensor& k, const at::Tensor& selected,
                                          const AttentionOptions& options) {
  return softmax(scores_of(q, k, selected, options.batch, q.size(0) / options.batch, options.scale));
}

at::Tensor sparse_attention_lse(const at::Tensor& q, const at::Tensor& k, const at::Tensor& selected,
                                const AttentionOptions& options) {
  return at::logsumexp(scores_of(q, k, selected, options.batch, q.size(0) / options.batch, options.scale), -1);
}

at::Tensor sparse_attention_decode(const at::Tensor& q, const at::Tensor& cache_k, const at::Tensor& cache_v,
                                   const at::Tensor& selected, int64_t length, const AttentionOptions& options) {
  const auto p = softmax(scores_of(q, cache_k.narrow(0, 0, length), selected, 1, length, options.scale));
  return rows_of(at::matmul(p, by_head(cache_v.narrow(0, 0, length), 1, q.size(1))), q);
}

}  // namespace cairn::kernels::ref
