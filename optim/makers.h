// One maker an optimizer; the table that names them is in optimizer.cpp.
#pragma once

#include <memory>
#include <vector>

#include "optim/optimizer.h"

namespace cairn::optim {

std::unique_ptr<Optimizer> make_adamw(const OptimizerOptions& options, std::vector<Parameter> parameters);
std::unique_ptr<Optimizer> make_sgd(const OptimizerOptions& options, std::vector<Parameter> parameters);
std::unique_ptr<Optimizer> make_muon(const OptimizerOptions& options, std::vector<Parameter> parameters);

}  // namespace cairn::optim
