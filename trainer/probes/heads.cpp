#include "trainer/probes/heads.h"

#include "models/kernels/ref/attention.h"
#include "models/kernels/ref/sparse_attention.h"

namespace cairn {

at::Tensor candidates(int64_t rows, const kernels::AttentionOptions& options) {
  const int64_t batch = options.batch, length = rows / batch;
  if (!options.segments.defined()) return at::arange(1, length + 1, at::kLong).expand({batch, length});
  const at::Tensor segment = options.segments.cpu().reshape({batch, length});
  return segment.unsqueeze(1).eq(segment.unsqueeze(2)).tril().sum(-1);
}

void Heads::attention(int64_t block, const at::Tensor& q, const at::Tensor& k, const at::Tensor& selected,
                      const kernels::AttentionOptions& options) {
  if (static_cast<int64_t>(sums_.size()) <= block) sums_.resize(block + 1);
  Sum& sum = sums_[block];
  const int64_t length = q.size(0) / options.batch;
  kernels::AttentionOptions one = options;  // a sequence at a time: [T, T] of every head is held
  one.batch = 1;
  for (int64_t b = 0; b < options.batch; ++b) {
    if (options.segments.defined()) one.segments = options.segments.narrow(0, b * length, length);
    const auto own = [&](const at::Tensor& rows) { return rows.narrow(0, b * length, length); };
    const at::Tensor values =
        measure_(selected.defined() ? kernels::ref::sparse_attention_probabilities(own(q), own(k), own(selected), one)
                                    : kernels::ref::attention_probabilities(own(q), own(k), one));  // [H, rows]
    const at::Tensor total = values.to(at::kDouble).sum(1);
    sum.heads = sum.heads.defined() ? sum.heads + total : total;
    sum.rows += values.size(1);
  }
}

void Heads::report(ProbeResults& results) {
  for (size_t i = 0; i < sums_.size(); ++i) {
    if (!sums_[i].heads.defined()) continue;  // a layer without attention
    const at::Tensor mean = (sums_[i].heads / static_cast<double>(sums_[i].rows)).cpu().contiguous();
    const double* values = mean.const_data_ptr<double>();
    results.add(fmt::format("layer.{}", i), {mean.numel()}, {values, values + mean.numel()});
  }
  sums_.clear();
}

}  // namespace cairn
