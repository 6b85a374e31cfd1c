#include "models/kernels/ref/index_loss.h"

#include <torch/csrc/autograd/autograd.h>

#include <limits>

#include "models/kernels/ref/index_topk.h"
#include "models/kernels/ref/sparse_attention.h"
#include "models/kernels/ref/wide.h"

namespace cairn::kernels::ref {
namespace {

// exp(scale q . k - lse) of every head, [B, H, T, T], 0 where not allowed ([B, T, T]).
at::Tensor mass_by_head(const MassSource& source, const at::Tensor& allowed, int64_t batch) {
  const int64_t heads = source.q.size(1), kv_heads = source.k.size(1), length = source.q.size(0) / batch;
  const auto split = [&](const at::Tensor& x) {
    return wide(x.detach()).reshape({batch, length, x.size(1), x.size(2)}).transpose(1, 2);
  };
  const auto k = split(source.k).repeat_interleave(heads / kv_heads, 1);  // [B, H, T, D]
  const auto scores = at::matmul(split(source.q), k.transpose(-1, -2)) * source.scale;
  const auto mass = at::exp(scores - wide(source.lse.detach()).unsqueeze(-1));
  return mass.masked_fill(allowed.logical_not().unsqueeze(1), 0.0);
}

at::Tensor allowed_pairs(int64_t rows, const at::Tensor& selected, const IndexOptions& options, at::Device device) {
  return selected.defined() ? selected_mask(selected, options.batch, rows / options.batch)
                            : index_candidates(rows, options, device);
}

// True for queries with more than `n` candidates, [B, T].
at::Tensor more_candidates_than(int64_t n, int64_t rows, const IndexOptions& options, at::Device device) {
  return index_candidates(rows, options, device).sum(-1).gt(n);
}

}  // namespace

at::Tensor index_target(const at::Tensor& selected, const std::vector<MassSource>& sources,
                        const IndexOptions& options) {
  const auto allowed = allowed_pairs(sources[0].q.size(0), selected, options, sources[0].q.device());
  at::Tensor p;
  for (const auto& source : sources) {
    const auto mass = mass_by_head(source, allowed, options.batch).sum(1);  // [B, T, T]
    const auto share = mass / mass.sum(-1, /*keepdim=*/true).clamp_min(std::numeric_limits<float>::min());
    p = p.defined() ? p + share : share;
  }
  return p / static_cast<double>(sources.size());
}

at::Tensor index_kl(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const at::Tensor& selected,
                    const std::vector<MassSource>& sources, const IndexOptions& options) {
  const auto p = index_target(selected, sources, options);
  const auto allowed = allowed_pairs(q.size(0), selected, options, q.device());
  const auto scores = index_scores(q, k, w, options);
  const auto log_q = at::log_softmax(scores.masked_fill(allowed.logical_not(), -1e30), -1);
  const auto kl = at::xlogy(p, p) - p * log_q.masked_fill(allowed.logical_not(), 0.0);
  const auto counts = more_candidates_than(1, q.size(0), options, q.device());
  return kl.sum(-1).masked_fill(counts.logical_not(), 0.0);
}

IndexLoss index_loss(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const at::Tensor& selected,
                     const std::vector<MassSource>& sources, const IndexOptions& options, double coefficient) {
  IndexLoss result;
  {
    at::AutoGradMode on(coefficient != 0);
    std::vector<at::Tensor> x{q.detach(), k.detach(), w.detach()};
    if (coefficient != 0)
      for (auto& t : x) t.requires_grad_();
    const auto kl = index_kl(x[0], x[1], x[2], selected, sources, options).sum();
    result.kl = kl.item<double>();
    if (coefficient != 0) {
      const auto grads = torch::autograd::grad({kl * coefficient}, x);
      result.dq = grads[0], result.dk = grads[1], result.dw = grads[2];
    }
  }
  at::NoGradGuard off;
  result.queries = more_candidates_than(1, q.size(0), options, q.device()).sum().item<int64_t>();
  if (!selected.defined() && options.topk > 0) {
    const auto p = index_target({}, sources, options);
    const auto chosen = selected_mask(ref::index_topk(q, k, w, options), options.batch, q.size(0) / options.batch);
    const auto counts = more_candidates_than(options.topk, q.size(0), options, q.device());
    const auto best = std::get<0>(at::sort(p, -1, /*descending=*/true)).narrow(2, 0, std::min(options.topk, p.size(2)));
    result.recall = p.masked_fill(chosen.logical_not(), 0.0).sum(-1).masked_select(counts).sum().item<double>();
    result.best_recall = best.sum(-1).masked_select(counts).sum().item<double>();
    result.recall_queries = counts.sum().item<int64_t>();
  }
  return result;
}

at::Tensor selected_mass(const MassSource& source, const at::Tensor& selected, const IndexOptions& options,
                         int64_t* queries) {
  const int64_t rows = source.q.size(0);
  const auto mass =
      mass_by_head(source, selected_mask(selected, options.batch, rows / options.batch), options.batch).sum(-1);
  const auto counts = more_candidates_than(options.topk, rows, options, selected.device());  // [B, T]
  *queries = counts.sum().item<int64_t>();
  return mass.masked_fill(counts.logical_not().unsqueeze(1), 0.0).to(at::kDouble).sum(at::IntArrayRef({0, 2}));
}

}  // namespace cairn::kernels::ref
