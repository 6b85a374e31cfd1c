// RMSNorm or LayerNorm with the residual addition before it.
#pragma once

#include "models/layers/pass.h"
#include "models/parameter.h"

namespace cairn::models {

struct NormConfig {
  enum class Kind { rms, layer } kind = Kind::rms;
  double eps = 1e-6;
  double offset = 0;  // 1: the weight is stored around zero (Gemma)
  bool bias = false;  // LayerNorm
};

class Norm {
 public:
  Norm() = default;
  Norm(Parameters& parameters, const std::string& name, int64_t features, const NormConfig& config);

  bool present() const { return weight.defined(); }
  // x [..., C] -> normalised.
  at::Tensor forward(const at::Tensor& x, const Pass& pass) const;
  // (x + residual, norm(x + residual)).
  std::pair<at::Tensor, at::Tensor> add(const at::Tensor& x, const at::Tensor& residual, const Pass& pass) const;

  at::Tensor weight;  // [C]
  at::Tensor bias;    // [C] or undefined

 private:
  NormConfig config_;
};

}  // namespace cairn::models
