// Stochastic gradient descent with momentum, torch.optim.SGD's arithmetic: dampening 0, L2 weight decay inside the
// gradient.
#include "optim/flat.h"
#include "optim/kernels/ref/passes.h"
#include "optim/makers.h"

namespace cairn::optim {
namespace {

class Sgd : public Optimizer {
 public:
  Sgd(const OptimizerOptions& options, std::vector<Parameter> parameters)
      : options_(options),
        flat_(std::move(parameters), options,
              options.momentum > 0 ? std::vector<std::string>{"momentum_buffer"} : std::vector<std::string>{}) {}

  std::vector<std::pair<std::string, at::Tensor>> state() override { return flat_.state(); }

 protected:
  void update(int64_t, double lr, double grad_scale) override {
    const kernels::SgdScalars s{static_cast<float>(grad_scale), static_cast<float>(options_.momentum),
                                static_cast<float>(lr), options_.nesterov, options_.clear_grad};
    if (flat_.fast()) {
      for (auto& stretch : flat_.stretches()) stretch.run.decay = static_cast<float>(stretch.weight_decay);
      for_blocks(flat_.stretches(), [&](const kernels::Run& run) { kernels::sgd(run, s); });
    } else {
      const at::NoGradGuard no_grad;
      for (const auto& slot : flat_.slots())
        kernels::ref::sgd(slot.parameter.tensor, slot.parameter.grad.view_as(slot.parameter.tensor),
                          slot.state.empty() ? at::Tensor() : slot.state[0], slot.weight_decay, s);
    }
  }

 private:
  OptimizerOptions options_;
  FlatState flat_;
};

}  // namespace

std::unique_ptr<Optimizer> make_sgd(const OptimizerOptions& options, std::vector<Parameter> parameters) {
  return std::make_unique<Sgd>(options, std::move(parameters));
}

}  // namespace cairn::optim
