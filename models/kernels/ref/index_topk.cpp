#include "models/kernels/ref/index_topk.h"

#include <limits>

#include "models/kernels/ref/wide.h"

namespace cairn::kernels::ref {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// q [B, M, J, D], k [B, L, D], w [B, M, J] -> [B, M, L]
at::Tensor scores_of(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w) {
  const auto dots = at::einsum("bmjd,bld->bmjl", {wide(q), wide(k)});
  return at::einsum("bmjl,bmj->bml", {at::relu(dots), wide(w)});
}

// Scores [B, M, L], candidates and positions that are always chosen likewise -> int32 [B, M, min(topk, L)].
at::Tensor choose(const at::Tensor& scores, const at::Tensor& candidates, const at::Tensor& always, int64_t topk) {
  const int64_t length = scores.size(2), width = std::min(topk, length);
  auto ranked = scores.masked_fill(scores.isnan(), -std::numeric_limits<float>::max());
  ranked = ranked.masked_fill(always, kInfinity).masked_fill(candidates.logical_not(), -kInfinity);
  // Stable: the lower position stands before an equal one.
  const auto best = std::get<1>(at::sort(ranked, /*stable=*/true, /*dim=*/-1, /*descending=*/true)).narrow(2, 0, width);
  const auto seen = candidates.gather(2, best);
  const auto ascending = std::get<0>(at::sort(best.masked_fill(seen.logical_not(), length), -1));
  return ascending.masked_fill(ascending.eq(length), -1).to(at::kInt);
}

at::Tensor arange(int64_t n, at::Device device) { return at::arange(n, at::TensorOptions(at::kLong).device(device)); }

}  // namespace

at::Tensor index_scores(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const IndexOptions& options) {
  const int64_t length = q.size(0) / options.batch;
  return scores_of(q.reshape({options.batch, length, q.size(1), q.size(2)}),
                   k.reshape({options.batch, length, k.size(1)}), w.reshape({options.batch, length, w.size(1)}));
}

at::Tensor index_candidates(int64_t rows, const IndexOptions& options, at::Device device) {
  const int64_t length = rows / options.batch;
  const auto position = arange(length, device);
  auto mask = position.unsqueeze(0).le(position.unsqueeze(1)).unsqueeze(0);  // [1, T, T]
  if (options.segments.defined()) {
    const auto segment = options.segments.to(device).reshape({options.batch, length});
    mask = mask.logical_and(segment.unsqueeze(2).eq(segment.unsqueeze(1)));
  }
  return mask.expand({options.batch, length, length});
}

at::Tensor index_topk(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const IndexOptions& options) {
  const auto candidates = index_candidates(q.size(0), options, q.device());
  const auto scores = index_scores(q.detach(), k.detach(), w.detach(), options);
  const int64_t length = scores.size(1);
  const auto rank = candidates.to(at::kLong).cumsum(2);  // 1 for the first position of the segment
  const auto position = arange(length, q.device());
  const auto near = position.unsqueeze(0).gt(position.unsqueeze(1) - options.window);
  const auto always = candidates.logical_and(rank.le(options.sinks).logical_or(near));
  const auto chosen = choose(scores, candidates, always, options.topk);
  return chosen.reshape({q.size(0), chosen.size(2)});
}

at::Tensor index_topk_decode(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, int64_t length,
                             const IndexOptions& options) {
  const int64_t rows = q.size(0);
  const auto scores =
      scores_of(q.detach().unsqueeze(0), k.detach().narrow(0, 0, length).unsqueeze(0), w.detach().unsqueeze(0));
  const auto position = arange(length, q.device()), row = position.narrow(0, length - rows, rows).unsqueeze(1);
  const auto candidates = position.unsqueeze(0).le(row).unsqueeze(0);
  const auto near = position.unsqueeze(0).gt(row - options.window), sink = position.unsqueeze(0).lt(options.sinks);
  const auto chosen = choose(scores, candidates, candidates.logical_and(near.logical_or(sink)), options.topk);
  return chosen.squeeze(0);
}

}  // namespace cairn::kernels::ref
