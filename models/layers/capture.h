// What a forward pass shows of its inside to a caller who asks (Pass::capture). What it computes stays the same to the
// bit.
#pragma once

#include "models/kernels/attention.h"

namespace cairn::models {

// For passes without gradients and without a cache: a backward pass that recomputes blocks would show them twice.
class Capture {
 public:
  virtual ~Capture() = default;
  // The residual stream [N, C] after a block; block -1: what enters block 0.
  virtual void stream(int64_t block, const at::Tensor& x) {}
  // Called for every block where wants_attention(): q [N, H, D] and k [N, K, D] as the scores are made of them, that is
  // normalised and rotated. The probabilities are kernels::ref::attention_probabilities(q, k, options), or, where
  // `selected` int32 [N, S] is defined (the keys that an indexer chose), sparse_attention_probabilities.
  virtual bool wants_attention() const { return false; }
  virtual void attention(int64_t block, const at::Tensor& q, const at::Tensor& k, const at::Tensor& selected,
                         const kernels::AttentionOptions& options) {}
  // The experts of every token of a block that has some, int32 [N, k].
  virtual void experts(int64_t block, const at::Tensor& chosen, int64_t num_experts) {}
};

}  // namespace cairn::models
