#include "models/kernels/ref/attention.h"

#include <limits>

#include "models/kernels/aten/dropout.h"
#include "models/random.h"

namespace cairn::kernels::ref {
namespace {

at::ScalarType compute_type(const at::Tensor& x) { return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// [B * T, K, D] -> [B, H, T, D], every kv head repeated for its H / K query heads.
at::Tensor by_head(const at::Tensor& x, int64_t batch, int64_t heads) {
  const int64_t length = x.size(0) / batch, group = heads / x.size(1);
  auto y = x.to(compute_type(x)).reshape({batch, length, x.size(1), x.size(2)}).transpose(1, 2);  // [B, K, T, D]
  return group == 1 ? y : y.repeat_interleave(group, 1);
}

at::Tensor capped_scores(const at::Tensor& q, const at::Tensor& k, const AttentionOptions& options) {
  auto scores = at::matmul(q, k.transpose(-1, -2)) * options.scale;
  if (options.softcap > 0) scores = options.softcap * at::tanh(scores / options.softcap);
  return scores;
}

// True where the query at position row[i] sees the key at position col[j]: causal, inside the window.
at::Tensor visible(const at::Tensor& row, const at::Tensor& col, int64_t window) {
  auto mask = col.unsqueeze(0).le(row.unsqueeze(1));
  if (window > 0) mask = mask.logical_and(col.unsqueeze(0).gt(row.unsqueeze(1) - window));
  return mask;
}

at::Tensor masked_scores(const at::Tensor& q, const at::Tensor& k, const AttentionOptions& options) {
  const int64_t batch = options.batch, length = q.size(0) / batch;
  const auto scores = capped_scores(by_head(q, batch, q.size(1)), by_head(k, batch, q.size(1)), options);
  const auto position = at::arange(length, at::TensorOptions().dtype(at::kLong).device(q.device()));
  auto mask = visible(position, position, options.window).unsqueeze(0);  // [1, T, T]
  if (options.segments.defined()) {
    const auto segment = options.segments.reshape({batch, length});
    mask = mask.logical_and(segment.unsqueeze(2).eq(segment.unsqueeze(1)));
  }
  return scores.masked_fill(mask.logical_not().unsqueeze(1), -std::numeric_limits<double>::infinity());  // [B, H, T, T]
}

// [B, H, T, S] -> [B, H, T, S + 1]: the sinks come last.
at::Tensor with_sinks(const at::Tensor& scores, const at::Tensor& sinks) {
  if (!sinks.defined()) return scores;
  const at::Tensor column = sinks.to(scores.scalar_type()).view({1, -1, 1, 1});
  return at::cat({scores, column.expand({scores.size(0), scores.size(1), scores.size(2), 1})}, -1);
}

}  // namespace

at::Tensor attention_dropout_mask(int64_t batch, int64_t heads, int64_t length, double p, const DropoutKey& key) {
  auto mask = at::empty({batch, heads, length, length}, at::kFloat);
  const Philox random{key.seed, Purpose::dropout, key.stream};
  const uint32_t threshold = static_cast<uint32_t>(p * 0x1.0p32);
  const float scale = static_cast<float>(1.0 / (1.0 - p));
  float* out = mask.data_ptr<float>();
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t t = 0; t < length; ++t)
        for (int64_t s = 0; s < length; ++s) {
          const uint64_t row = key.first_row + b * length + t;
          const uint64_t block = ((row * heads + h) << 20) + (s / 64) * 16 + s % 16;
          *out++ = random.block(block)[(s / 16) % 4] >= threshold ? scale : 0.0f;
        }
  return mask;
}

at::Tensor attention_probabilities(const at::Tensor& q, const at::Tensor& k, const AttentionOptions& options) {
  const at::Tensor scores = masked_scores(q, k, options);
  return at::softmax(with_sinks(scores, options.sinks), -1).narrow(-1, 0, scores.size(-1));
}

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionOptions& options) {
  const int64_t batch = options.batch, heads = q.size(1), length = q.size(0) / batch;
  auto p = attention_probabilities(q, k, options);  // [B, H, T, T]
  if (options.dropout > 0) {
    const auto mask = q.is_cpu() ? attention_dropout_mask(batch, heads, length, options.dropout, options.dropout_key)
                                 : aten::attention_dropout_mask(batch, heads, length, options.dropout,
                                                                options.dropout_key, q.device());
    p = p * mask.to(p.options());
  }
  const auto out = at::matmul(p, by_head(v, batch, heads));  // [B, H, T, D]
  return out.transpose(1, 2).reshape({q.size(0), heads * v.size(2)}).to(q.scalar_type());
}

at::Tensor attention_lse(const at::Tensor& q, const at::Tensor& k, const AttentionOptions& options) {
  return at::logsumexp(with_sinks(masked_scores(q, k, options), options.sinks), -1);
}

at::Tensor attention_decode(const at::Tensor& q, const at::Tensor& cache_k, const at::Tensor& cache_v, int64_t length,
                            const AttentionOptions& options) {
  const int64_t rows = q.size(0), heads = q.size(1);
  const auto k = by_head(cache_k.narrow(0, 0, length), 1, heads), v = by_head(cache_v.narrow(0, 0, length), 1, heads);
  const auto scores = capped_scores(by_head(q, 1, heads), k, options);  // [1, H, N, length]
  const auto position = at::arange(length, at::TensorOptions().dtype(at::kLong).device(q.device()));
  const auto mask = visible(position.narrow(0, length - rows, rows), position, options.window);
  const auto seen = scores.masked_fill(mask.logical_not(), -std::numeric_limits<double>::infinity());
  const auto p = at::softmax(with_sinks(seen, options.sinks), -1).narrow(-1, 0, length);
  return at::matmul(p, v).transpose(1, 2).reshape({rows, heads * v.size(-1)}).to(q.scalar_type());
}

}  // namespace cairn::kernels::ref
