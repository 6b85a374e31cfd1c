#include "models/kernels/ref/delta_rule.h"

#include "models/kernels/ref/wide.h"

namespace cairn::kernels::ref {

at::Tensor delta_rule(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& g,
                      const at::Tensor& beta, const DeltaRuleOptions& options, const at::Tensor& state) {
  const int64_t B = options.batch, T = q.size(0) / B, Hv = v.size(1), group = Hv / k.size(1);
  // [B, T, H, D], every key head repeated for the value heads that read it.
  const auto by_head = [&](const at::Tensor& x) {
    at::Tensor y = wide(x).reshape({B, T, x.size(1), x.size(2)});
    if (options.eps > 0) y = y * at::rsqrt(y.square().sum(-1, true) + options.eps);
    return group == 1 ? y : y.repeat_interleave(group, 2);
  };
  const at::Tensor qs = by_head(q) * options.scale, ks = by_head(k), vs = wide(v).reshape({B, T, Hv, v.size(2)});
  const at::Tensor decay = wide(g).reshape({B, T, Hv}).exp(), strength = wide(beta).reshape({B, T, Hv});
  at::Tensor begins;  // [B, T]: a document starts here
  if (options.segments.defined() && T > 0) {
    const at::Tensor segment = options.segments.reshape({B, T});
    begins = at::ones({B, T}, segment.options().dtype(at::kBool));
    if (T > 1) begins.narrow(1, 1, T - 1).copy_(segment.narrow(1, 1, T - 1) != segment.narrow(1, 0, T - 1));
  }
  at::Tensor S = state.defined() ? wide(state).to(vs.scalar_type()).unsqueeze(0)  // [B, Hv, Dk, Dv]
                                 : at::zeros({B, Hv, k.size(2), v.size(2)}, vs.options());
  std::vector<at::Tensor> out;
  for (int64_t t = 0; t < T; ++t) {
    if (begins.defined()) S = S.masked_fill(begins.select(1, t).view({B, 1, 1, 1}), 0);
    const at::Tensor kt = ks.select(1, t).unsqueeze(-1), qt = qs.select(1, t).unsqueeze(-1);  // [B, Hv, Dk, 1]
    S = S * decay.select(1, t).view({B, Hv, 1, 1});
    const at::Tensor u = (vs.select(1, t) - (S * kt).sum(-2)) * strength.select(1, t).unsqueeze(-1);  // [B, Hv, Dv]
    S = S + kt * u.unsqueeze(-2);
    out.push_back((S * qt).sum(-2));
  }
  if (state.defined()) at::Tensor(state).copy_(S.squeeze(0));
  return at::stack(out, 1).reshape({B * T, Hv * v.size(2)}).to(v.scalar_type());
}

}  // namespace cairn::kernels::ref
