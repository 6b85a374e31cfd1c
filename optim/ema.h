// Exponential moving average of the weights: ema += (1 - decay) (p - ema), float32, one pass after each step.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "optim/parameter.h"

namespace cairn::optim {

class Ema {
 public:
  // Starts as a copy of the parameters. Throws std::invalid_argument unless 0 <= decay < 1.
  Ema(double decay, std::vector<Parameter> parameters);
  void update();
  // "<parameter>": live float32 views in the parameters' shapes; saved and loaded by copying.
  std::vector<std::pair<std::string, at::Tensor>> state();

 private:
  double decay_;
  std::vector<Parameter> parameters_;
  at::Tensor flat_;
  std::vector<at::Tensor> views_;
};

}  // namespace cairn::optim
