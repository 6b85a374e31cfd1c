// One update of the parameters from their gradients. An optimizer is one file and one line of the table in
// optimizer.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "optim/parameter.h"

namespace cairn::optim {

// Field names are the YAML keys of `optim:`. `defaults(name)` gives those of one optimizer (torch's, but for betas and
// weight_decay of adamw).
struct OptimizerOptions {
  std::string name = "adamw";
  double lr = 1e-3;                         // base; the schedule's multiplier and step() decide what is used
  std::vector<double> betas = {0.9, 0.95};  // adamw, and the AdamW part of muon
  double eps = 1e-8;                        // likewise
  double weight_decay = 0.1;                // decoupled (adamw, muon); L2 added to the gradient (sgd), as in torch
  std::vector<std::string> decay_roles = {"matrix", "head"};        // roles that weight_decay applies to
  double momentum = 0.95;                                           // muon, sgd
  bool nesterov = true;                                             // muon, sgd
  int ns_steps = 5;                                                 // muon: Newton-Schulz iterations, 1..99
  std::vector<double> ns_coefficients = {3.4445, -4.7750, 2.0315};  // muon
  double ns_eps = 1e-7;                                             // muon
  std::string adjust_lr_fn = "original";                            // muon: original | match_rms_adamw
  double adamw_lr_factor = 1.0;  // muon: lr of its AdamW part (all roles but matrix) over that of the matrices
  bool clear_grad = false;       // leave gradients at zero, in the same pass over memory
  bool reference = false;  // the plain twins (kernels/ref) in place of the vectorised passes; tensors that are not on
                           // the CPU use them anyway
};

class Optimizer {
 public:
  virtual ~Optimizer() = default;
  // Step number steps_done() + 1 with learning rate `lr`. Gradients are multiplied by `grad_scale` (the clip
  // coefficient) on the way; they are not changed unless clear_grad. The bits depend on no number of threads, nor on
  // how parameters lie in memory.
  void step(double lr, double grad_scale = 1.0) { update(++steps_, lr, grad_scale); }
  // Named state ("<parameter>.exp_avg", ...): live float32 views in the parameters' shapes, saved and loaded by
  // copying.
  virtual std::vector<std::pair<std::string, at::Tensor>> state() = 0;
  // Steps done so far; bias correction hangs on it. Set when a run is resumed.
  int64_t steps_done() const { return steps_; }
  void set_step(int64_t done) { steps_ = done; }

 protected:
  virtual void update(int64_t step, double lr, double grad_scale) = 0;

 private:
  int64_t steps_ = 0;
};

// Throws std::invalid_argument naming the key for a value out of range, an unknown name, or parameters that do not fit
// (shape, type, layout).
std::unique_ptr<Optimizer> make_optimizer(const OptimizerOptions& options, std::vector<Parameter> parameters);

std::vector<std::string> optimizer_names();
OptimizerOptions defaults(const std::string& name);  // throws std::invalid_argument naming the optimizers there are

}  // namespace cairn::optim
