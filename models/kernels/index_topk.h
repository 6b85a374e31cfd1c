// The lightning indexer's scores and the keys that they choose (DeepSeek-V3.2-Exp report, eq. 1):
//   I[t, s] = sum_j w[t, j] relu(q[t, j] . k[s])
// in tiles with a streaming top-k: T x T scores are never held.
#pragma once

#include <ATen/ATen.h>

namespace cairn::kernels {

struct IndexOptions {
  int64_t batch = 1;  // N = batch * length rows, sequences one after another; positions are those in a sequence
  int64_t topk = 0;   // keys that a query chooses, at least 1
  int64_t sinks = 0, window = 0;  // always among them: the first `sinks` positions of the segment, the last `window`
  at::Tensor segments;            // int32 [N] or undefined: a query sees keys of its own segment alone (non-decreasing)
};

// q [N, J, D], k [N, D], w [N, J] (scales folded into w) -> int32 [N, min(topk, length)]: for every query the positions
// of its topk best candidates (itself and what stands before it in its segment) in ascending order, -1 after the last.
// Equal scores: the lower position wins, so zeros of ReLU sums choose alike everywhere. Scores are float32, each one
// chain of fused multiply-adds over the features, then one over the heads: their bits, and with them the choice, depend
// on neither threads, nor AVX2 or AVX-512, nor the other rows. NaN counts as the lowest score.
// Throws std::invalid_argument where shapes or types do not fit, topk < 1 or sinks + window > topk.
at::Tensor index_topk(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const IndexOptions& options);

// Decoding: q [n, J, D], w [n, J] of the n newest rows that end a context of `length` cached rows k [capacity, D] (the
// new ones among them). Row i chooses among cached rows [0, length - n + i] what index_topk chooses -> int32 [n,
// min(topk, length)].
at::Tensor index_topk_decode(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, int64_t length,
                             const IndexOptions& options);

}  // namespace cairn::kernels
