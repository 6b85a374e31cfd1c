// What the lightning indexer learns from: KL(p || softmax(I)), p the attention's own probabilities summed over its
// heads and divided by their sum (DeepSeek-V3.2-Exp report, eq. 3 and 4). The gradient of the scores is softmax(I) - p.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "models/kernels/index_topk.h"

namespace cairn::kernels {

// The attention of a layer: its mass on key s is the sum over the heads of exp(scale q . k - lse).
struct MassSource {
  at::Tensor q, k;  // [N, H, D] and [N, K, D], K divides H
  at::Tensor lse;   // [batch, H, length], of the attention that the layer does
  double scale = 1.0;
};

struct IndexLoss {
  double kl = 0;          // nats, summed over the queries with at least two candidates
  int64_t queries = 0;    // how many these are
  at::Tensor dq, dk, dw;  // gradients of coefficient * kl; undefined where the coefficient is 0
  // Without a selection alone: attention mass on the topk keys that the indexer would choose, and on the topk heaviest
  // keys, each a share of the query's mass, summed over the queries with more than topk candidates.
  double recall = 0, best_recall = 0;
  int64_t recall_queries = 0;
};

// q [N, J, D], k [N, D], w [N, J] as for index_topk. selected int32 [N, S]: softmax and p are taken over the listed
// keys (ascending, -1 after the last). Undefined: over all candidates of the segment, in strips of a few rows; T x T is
// held nowhere. options.topk may be 0 where the loss is all that is asked (no recall then). Several sources: the mean
// of their p (layers that share one selection). Everything but q, k and w is a constant to the gradient. Throws
// std::invalid_argument where shapes or types do not fit.
IndexLoss index_loss(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const at::Tensor& selected,
                     const std::vector<MassSource>& sources, const IndexOptions& options, double coefficient);

// Recall head by head: float64 [H], the share of its mass that each head has on the selected keys, summed over the
// queries with more than options.topk candidates; source.lse is that of the dense attention. *queries: how many.
at::Tensor selected_mass(const MassSource& source, const at::Tensor& selected, const IndexOptions& options,
                         int64_t* queries);

}  // namespace cairn::kernels
