#include "models/kernels/ref/causal_conv.h"

#include "models/kernels/ref/wide.h"

namespace cairn::kernels::ref {

at::Tensor causal_conv(const at::Tensor& x, const at::Tensor& weight, const ConvOptions& options,
                       const at::Tensor& history) {
  const int64_t B = options.batch, T = x.size(0) / B, taps = weight.size(1);
  std::vector<at::Tensor> columns(options.runs.size());
  auto runs = options.runs;
  std::sort(runs.begin(), runs.end(), [](const ConvRun& a, const ConvRun& b) { return a.to < b.to; });
  for (size_t i = 0; i < runs.size(); ++i) columns[i] = at::arange(runs[i].from, runs[i].from + runs[i].count);
  const at::Tensor picked = at::cat(columns).to(x.device());
  const at::Tensor rows = wide(x).index_select(1, picked).view({B, T, -1}), w = weight.to(rows.scalar_type());
  const at::Tensor past = history.defined() ? wide(history).to(rows.scalar_type()).index_select(1, picked).unsqueeze(0)
                                            : at::zeros({B, taps - 1, rows.size(2)}, rows.options());
  const at::Tensor all = at::cat({past, rows}, 1);  // [B, taps - 1 + T, W]
  at::Tensor sum = at::zeros_like(rows);
  for (int64_t j = 0; j < taps; ++j) {
    at::Tensor seen = all.narrow(1, taps - 1 - j, T);  // row t - j beside row t
    if (options.segments.defined() && j > 0) {
      const at::Tensor segment = options.segments.view({B, T});
      at::Tensor same = at::zeros({B, T}, segment.options().dtype(at::kBool));
      if (T > j) same.narrow(1, j, T - j).copy_(segment.narrow(1, j, T - j) == segment.narrow(1, 0, T - j));
      seen = seen * same.unsqueeze(-1).to(seen.scalar_type());
    }
    sum = sum + seen * w.select(1, taps - 1 - j);
  }
  if (history.defined()) at::Tensor(history).copy_(at::cat({history, x}).narrow(0, T, taps - 1));
  return at::silu(sum).view({B * T, -1}).to(x.scalar_type());
}

}  // namespace cairn::kernels::ref
