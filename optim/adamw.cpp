// AdamW (Loshchilov & Hutter 2019, "Decoupled weight decay regularization"), torch.optim.AdamW's arithmetic.
#include <cmath>

#include "optim/flat.h"
#include "optim/kernels/device.h"
#include "optim/kernels/ref/passes.h"
#include "optim/makers.h"

namespace cairn::optim {
namespace {

class AdamW : public Optimizer {
 public:
  AdamW(const OptimizerOptions& options, std::vector<Parameter> parameters)
      : options_(options), flat_(std::move(parameters), options, {"exp_avg", "exp_avg_sq"}) {}

  std::vector<std::pair<std::string, at::Tensor>> state() override { return flat_.state(); }

 protected:
  void update(int64_t step, double lr, double grad_scale) override {
    const double beta1 = options_.betas[0], beta2 = options_.betas[1], t = static_cast<double>(step);
    kernels::AdamwScalars s;
    s.grad_scale = static_cast<float>(grad_scale);
    s.one_minus_beta1 = static_cast<float>(1 - beta1);
    s.beta2 = static_cast<float>(beta2);
    s.one_minus_beta2 = static_cast<float>(1 - beta2);
    s.inv_sqrt_correction2 = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, t)));
    s.eps = static_cast<float>(options_.eps);
    s.step_size = static_cast<float>(lr / (1 - std::pow(beta1, t)));
    s.clear_grad = options_.clear_grad;
    for (auto& stretch : flat_.stretches()) stretch.run.decay = static_cast<float>(1 - lr * stretch.weight_decay);
    if (const auto device_adamw = kernels::device_passes().adamw; flat_.on_device() && device_adamw != nullptr) {
      const c10::DeviceGuard guard(flat_.device());
      for (const auto& stretch : flat_.stretches()) device_adamw(stretch.run, s);
    } else if (flat_.fast()) {
      for_blocks(flat_.stretches(), [&](const kernels::Run& run) { kernels::adamw(run, s); });
    } else {
      const at::NoGradGuard no_grad;
      for (const auto& slot : flat_.slots())
        kernels::ref::adamw(slot.parameter.tensor, slot.parameter.grad.view_as(slot.parameter.tensor), slot.state[0],
                            slot.state[1], 1 - lr * slot.weight_decay, s);
    }
  }

 private:
  OptimizerOptions options_;
  FlatState flat_;
};

}  // namespace

std::unique_ptr<Optimizer> make_adamw(const OptimizerOptions& options, std::vector<Parameter> parameters) {
  return std::make_unique<AdamW>(options, std::move(parameters));
}

}  // namespace cairn::optim
