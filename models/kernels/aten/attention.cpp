#include "models/kernels/aten/attention.h"

#include "models/kernels/ref/attention.h"

namespace cairn::kernels::aten {
namespace {

// True where a query sees a key, [batch or 1, 1, T, T]; undefined where causality says it all.
at::Tensor visible(int64_t length, const AttentionOptions& options, at::Device device) {
  const bool windowed = options.window > 0 && options.window < length;
  if (!windowed && !options.segments.defined()) return {};
  const auto position = at::arange(length, at::TensorOptions(at::kLong).device(device));
  const auto row = position.unsqueeze(1), col = position.unsqueeze(0);
  at::Tensor mask = col.le(row).unsqueeze(0);  // [1, T, T]
  if (windowed) mask = mask.logical_and(col.gt(row - options.window));
  if (options.segments.defined()) {
    const auto segment = options.segments.reshape({options.batch, length});
    mask = mask.logical_and(segment.unsqueeze(2).eq(segment.unsqueeze(1)));
  }
  return mask.unsqueeze(1);
}

// [B * T, K, D] -> [B, H, T, D]: every kv head stands for the H / K query heads that read it. Repeated here, since the
// fused operator that takes float32 knows no groups.
at::Tensor by_head(const at::Tensor& x, int64_t batch, int64_t heads, at::ScalarType type) {
  const int64_t length = x.size(0) / batch, K = x.size(1), D = x.size(2), group = heads / K;
  const at::Tensor y = x.to(type).reshape({batch, length, K, D}).transpose(1, 2);  // [B, K, T, D]
  if (group == 1) return y;
  return y.unsqueeze(2).expand({batch, K, group, length, D}).reshape({batch, heads, length, D});
}

}  // namespace

at::Tensor attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionOptions& options,
                     at::ScalarType type) {
  if (options.softcap > 0 || options.dropout > 0 || options.sinks.defined()) return ref::attention(q, k, v, options);
  const int64_t batch = options.batch, heads = q.size(1), length = q.size(0) / batch;
  const at::Tensor mask = visible(length, options, q.device());
  const auto given = mask.defined() ? std::optional<at::Tensor>(mask) : std::nullopt;
  const at::Tensor out = at::scaled_dot_product_attention(
      by_head(q, batch, heads, type), by_head(k, batch, heads, type), by_head(v, batch, heads, type), given,
      /*dropout_p=*/0.0, /*is_causal=*/!mask.defined(), options.scale);  // [B, H, T, D]
  return out.transpose(1, 2).reshape({q.size(0), heads * v.size(2)}).to(q.scalar_type());
}

}  // namespace cairn::kernels::aten
