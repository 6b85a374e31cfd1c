#include "models/kernels/aten/delta_rule.h"

#include <limits>

#include "models/kernels/ref/wide.h"

namespace cairn::kernels::aten {

at::Tensor delta_rule(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& g,
                      const at::Tensor& beta, const DeltaRuleOptions& options) {
  constexpr int64_t C = 64;
  const int64_t B = options.batch, T = q.size(0) / B, H = v.size(1), group = H / k.size(1), Dv = v.size(2);
  const int64_t chunks = (T + C - 1) / C, padding = chunks * C - T;
  // [N, heads, D] -> [B, H, chunks, C, D], rows of zeros at the end.
  const auto tiles = [&](const at::Tensor& x, bool normed) {
    at::Tensor y = ref::wide(x).reshape({B, T, x.size(1), x.size(2)});
    if (normed && options.eps > 0) y = y * at::rsqrt(y.square().sum(-1, true) + options.eps);
    if (x.size(1) != H) y = y.repeat_interleave(group, 2);
    y = at::constant_pad_nd(y.transpose(1, 2), {0, 0, 0, padding});
    return y.reshape({B, H, chunks, C, x.size(2)});
  };
  const at::Tensor qs = tiles(q, true) * options.scale, ks = tiles(k, true), vs = tiles(v, false);
  const at::Tensor G = tiles(g.unsqueeze(-1), false).squeeze(-1).cumsum(-1);  // [B, H, chunks, C]
  const at::Tensor strength = tiles(beta.unsqueeze(-1), false);               // [B, H, chunks, C, 1]

  const auto boolean = at::TensorOptions(at::kBool).device(v.device());
  at::Tensor seen = at::ones({C, C}, boolean).tril();  // [C, C] or [B, 1, chunks, C, C]
  at::Tensor reads, writes, passes;                    // of the state, where documents begin: [B, 1, chunks, C], ...
  if (options.segments.defined()) {
    const at::Tensor flat = options.segments.reshape({B, T});
    const at::Tensor segment =  // the padding belongs to the last document
        at::cat({flat, flat.narrow(1, T - 1, 1).expand({B, padding})}, 1).view({B, 1, chunks, C});
    seen = seen.logical_and(segment.unsqueeze(-1).eq(segment.unsqueeze(-2)));
    const at::Tensor last = segment.select(-1, C - 1);                                            // [B, 1, chunks]
    const at::Tensor before = at::cat({last.narrow(2, 0, 1), last.narrow(2, 0, chunks - 1)}, 2);  // of the chunk before
    reads = segment.eq(before.unsqueeze(-1)), writes = segment.eq(last.unsqueeze(-1)), passes = last.eq(before);
  }
  const auto kept = [](const at::Tensor& x, const at::Tensor& mask) {
    return mask.defined() ? x * mask.to(x.scalar_type()) : x;
  };
  const at::Tensor D = (G.unsqueeze(-1) - G.unsqueeze(-2))
                           .masked_fill(seen.logical_not(), -std::numeric_limits<double>::infinity())
                           .exp();
  const at::Tensor gamma = kept(G.exp(), reads).unsqueeze(-1);
  const at::Tensor kappa = kept((G.narrow(-1, C - 1, 1) - G).exp(), writes).unsqueeze(-1);
  const at::Tensor total = kept(G.select(-1, C - 1).exp(), passes).unsqueeze(-1).unsqueeze(-1);

  const at::Tensor A = (at::matmul(ks, ks.transpose(-1, -2)) * D * strength).tril(-1);
  const at::Tensor P = at::matmul(qs, ks.transpose(-1, -2)) * D;
  const at::Tensor solved = at::linalg_solve_triangular(A, at::cat({vs * strength, ks * gamma * strength}, -1),
                                                        /*upper=*/false, /*left=*/true, /*unitriangular=*/true);
  const at::Tensor u = solved.narrow(-1, 0, Dv), w = solved.narrow(-1, Dv, k.size(2));
  const at::Tensor q_in = qs * gamma, k_out = (ks * kappa).transpose(-1, -2);
  at::Tensor S = at::zeros({B, H, k.size(2), Dv}, vs.options());
  std::vector<at::Tensor> out;
  for (int64_t c = 0; c < chunks; ++c) {
    const at::Tensor fresh = u.select(2, c) - at::matmul(w.select(2, c), S);
    out.push_back(at::matmul(q_in.select(2, c), S) + at::matmul(P.select(2, c), fresh));
    S = S * total.select(2, c) + at::matmul(k_out.select(2, c), fresh);
  }
  return at::stack(out, 2)
      .reshape({B, H, chunks * C, Dv})
      .narrow(2, 0, T)
      .transpose(1, 2)
      .reshape({B * T, H * Dv})
      .to(v.scalar_type());
}

}  // namespace cairn::kernels::aten
