// Where parallelism enters. Model code is written for one device and calls these five hooks; their default does
// nothing.
#pragma once

#include <ATen/ATen.h>

namespace cairn::models {

// How a linear layer may be cut over ranks: by output features (column), by input features (row), or not at all.
enum class LinearCut { none, column, row };

class Seams {
 public:
  virtual ~Seams() = default;

  // 1. Around linear layers. `linear_input` sees x before the product, `linear_output` y after it; both are
  // differentiable. Where neither does anything, exchanges_linear() is false and layers may fuse what stands beside a
  // product with it.
  virtual bool exchanges_linear() const { return false; }
  virtual at::Tensor linear_input(const at::Tensor& x, LinearCut) const { return x; }
  virtual at::Tensor linear_output(const at::Tensor& y, LinearCut) const { return y; }

  // 2. Vocabulary-parallel embedding: the rows of the table that this rank holds, and the sum of what ranks looked up.
  virtual at::Tensor embedding_ids(const at::Tensor& ids) const { return ids; }
  virtual at::Tensor embedding_output(const at::Tensor& y) const { return y; }

  // 3. Token dispatch around experts: x [N, C], experts int32 [N, k] and their weights [N, k] before, differentiable
  // but for the experts, out [N, C] after. Where exchanges_tokens(), an expert's capacity cannot be counted by
  // sequence.
  virtual bool exchanges_tokens() const { return false; }
  virtual void expert_input(at::Tensor& x, at::Tensor& experts, at::Tensor& weights) const {}
  virtual at::Tensor expert_output(const at::Tensor& out) const { return out; }

  // 4. Around attention over all keys: q [N, H, D], k [N, K, D] and v [N, K, E] before, out [N, H * E] after. Called
  // where exchanges_attention() says so; elsewhere q, k and v stay one tensor.
  virtual bool exchanges_attention() const { return false; }
  virtual void attention_input(at::Tensor& q, at::Tensor& k, at::Tensor& v) const {}
  virtual at::Tensor attention_output(const at::Tensor& out) const { return out; }

  // 5. Around a block, forward and backward: gather its weights before, release them after. after_backward also means
  // that this micro-batch has added all it has to the gradients of the block's weights. Block -1 is the embedding,
  // block `blocks` the final norm, those after it the modules that predict further tokens (which read the embedding too);
  // the head's weights are there as long as the step is.
  virtual void before_forward(int64_t block) const {}
  virtual void after_forward(int64_t block) const {}
  virtual void before_backward(int64_t block) const {}
  virtual void after_backward(int64_t block) const {}

  static const Seams& none();
};

}  // namespace cairn::models
