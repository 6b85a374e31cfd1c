// y = x W^T + b.
#pragma once

#include "models/layers/pass.h"
#include "models/parameter.h"

namespace cairn::models {

struct LinearOptions {
  bool bias = false;
  double init_std = 0.02;
  LinearCut cut = LinearCut::none;
};

class Linear {
 public:
  Linear() = default;
  // One product whose output rows are several parameters: parts [{"...q_proj", H * D}, ...]; adds ".weight" (and
  // ".bias") to each name.
  Linear(Parameters& parameters, const std::vector<Parameters::Part>& parts, int64_t in_features,
         const LinearOptions& options);

  // x [N, in] -> [N, out]; the gradient of the weight is added to weight.grad.
  at::Tensor forward(const at::Tensor& x, const Pass& pass) const;

  at::Tensor weight;  // [out, in]
  at::Tensor bias;    // [out] or undefined

 private:
  LinearCut cut_ = LinearCut::none;
};

}  // namespace cairn::models
