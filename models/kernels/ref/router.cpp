#include "models/kernels/ref/router.h"

#include <limits>

namespace cairn::kernels::ref {
namespace {

// The k best of the last dimension, best first; equal ones in order of index (topk promises no order).
at::Tensor best(const at::Tensor& x, int64_t k) {
  return std::get<1>(at::sort(x, /*stable=*/true, /*dim=*/-1, /*descending=*/true)).narrow(-1, 0, k);
}

}  // namespace

Routing route(const at::Tensor& logits, const at::Tensor& bias, const RouterOptions& options) {
  const int64_t N = logits.size(0), E = logits.size(1);
  Routing out;
  out.scores = options.scoring == RouterOptions::Scoring::sigmoid ? at::sigmoid(logits) : at::softmax(logits, -1);
  out.lse = at::logsumexp(logits, -1);
  const bool by_logits = options.scoring == RouterOptions::Scoring::softmax_topk;
  at::Tensor choice = (by_logits ? logits : out.scores).detach();
  if (bias.defined()) choice = choice + bias;
  if (options.groups > 1) {
    const at::Tensor grouped = choice.view({N, options.groups, E / options.groups});
    const at::Tensor value = std::get<0>(grouped.topk(2)).sum(-1);  // [N, groups]
    const at::Tensor allowed =
        at::zeros_like(value, at::kBool).scatter(1, best(value, options.topk_groups), true).unsqueeze(-1);
    choice = grouped.masked_fill(allowed.logical_not(), -std::numeric_limits<double>::infinity()).view({N, E});
  }
  const at::Tensor chosen = best(choice, options.topk);  // [N, k]
  out.experts = chosen.to(at::kInt);
  if (by_logits) {
    out.weights = at::softmax(logits.gather(1, chosen), -1) * options.scale;
    return out;
  }
  at::Tensor weights = out.scores.gather(1, chosen);
  if (options.normalise) {
    const double tiny = options.scoring == RouterOptions::Scoring::sigmoid ? 1e-20 : 0;
    weights = weights / (weights.sum(-1, true) + tiny);
  }
  out.weights = weights * options.scale;
  return out;
}

at::Tensor router_aux_loss(const Routing& routing, const RouterOptions& options, const RouterAux& aux) {
  at::Tensor loss;
  if (aux.balance.defined()) {
    at::Tensor share = routing.scores;
    if (options.scoring == RouterOptions::Scoring::sigmoid) share = share / share.sum(-1, true);
    const int64_t sequences = aux.balance.size(0), E = share.size(1);
    loss = (share.view({sequences, -1, E}) * aux.balance.to(share.options()).unsqueeze(1)).sum();
  }
  if (aux.z != 0) {
    const at::Tensor z = routing.lse.square().sum() * aux.z;
    loss = loss.defined() ? loss + z : z;
  }
  return loss;
}

}  // namespace cairn::kernels::ref
