// The feed-forward half of a block: gated (SwiGLU, GeGLU) or two plain products.
#pragma once

#include "models/kernels/activation.h"
#include "models/layers/linear.h"

namespace cairn::models {

struct FeedForwardConfig {
  int64_t intermediate_size = 0;
  kernels::Activation activation = kernels::Activation::silu;
  bool gated = true;
  bool bias = false;
  double init_std = 0.02;
  double out_init_std = 0.02;
};

// What stands after the mixer in a block.
class FeedForwardLayer {
 public:
  virtual ~FeedForwardLayer() = default;
  // x [N, C], already normalised -> [N, C].
  virtual at::Tensor forward(const at::Tensor& x, const Pass& pass) const = 0;
};

class FeedForward : public FeedForwardLayer {
 public:
  // `name`: "model.layers.3.mlp".
  FeedForward(Parameters& parameters, const std::string& name, int64_t hidden_size, const FeedForwardConfig& config);
  at::Tensor forward(const at::Tensor& x, const Pass& pass) const override;

 private:
  FeedForwardConfig config_;
  Linear up_, down_;  // up_ holds gate and up in one product where there is a gate
};

}  // namespace cairn::models
