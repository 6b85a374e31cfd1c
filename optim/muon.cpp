// Muon (Jordan et al. 2024): momentum, orthogonalised by a quintic Newton-Schulz iteration, for the matrices; AdamW for
// the rest. torch.optim.Muon's arithmetic, except that on CPUs the iteration runs in float32 (torch: bfloat16
// everywhere).
#include <cmath>

#include "optim/flat.h"
#include "optim/kernels/ref/passes.h"
#include "optim/makers.h"
#include "optim/norm.h"

#include <fmt/format.h>

namespace cairn::optim {
namespace {

// MKL's float32 products give the same bits for any number of threads only where rows come in eights; zero rows and
// columns stay zero through the iteration, so padding changes nothing else.
int64_t pad8(int64_t n) { return (n + 7) / 8 * 8; }

// u [rows, cols] float32 -> its orthogonal factor, nearly, in the same shape.
at::Tensor orthogonalise(const at::Tensor& u, const OptimizerOptions& options) {
  const double a = options.ns_coefficients[0], b = options.ns_coefficients[1], c = options.ns_coefficients[2];
  const bool tall = u.size(0) > u.size(1);
  const at::Tensor wide = tall ? u.t() : u;
  const auto type = u.is_cpu() ? at::kFloat : at::kBFloat16;
  const int64_t rows = pad8(wide.size(0)), cols = pad8(wide.size(1));
  at::Tensor x = at::zeros({rows, cols}, u.options().dtype(type)), next = at::empty_like(x);
  const at::Tensor inside = x.narrow(0, 0, wide.size(0)).narrow(1, 0, wide.size(1));
  if (u.is_cpu()) {
    inside.copy_(wide);
    inside.div_(std::max(gradient_norm(u), options.ns_eps));  // spectral norm at most 1
  } else {
    inside.copy_(wide.to(type));
    inside.div_(inside.norm().clamp_min(options.ns_eps));
  }
  at::Tensor gram = at::empty({rows, rows}, x.options()), step = at::empty_like(gram);
  for (int i = 0; i < options.ns_steps; ++i) {
    at::mm_out(gram, x, x.t());
    at::addmm_out(step, gram, gram, gram, b, c);  // b A + c A A, A = X X^T
    at::addmm_out(next, x, step, x, a, 1);        // a X + (b A + c A A) X
    std::swap(x, next);
  }
  const at::Tensor result = x.narrow(0, 0, wide.size(0)).narrow(1, 0, wide.size(1));
  return (tall ? result.t() : result).to(at::kFloat).contiguous();
}

// torch's two ways to make the update's size independent of the shape [rows, cols].
double adjusted(const std::string& how, int64_t rows, int64_t cols) {
  const auto r = static_cast<double>(rows), c = static_cast<double>(cols);
  return how == "match_rms_adamw" ? 0.2 * std::sqrt(std::max(r, c)) : std::sqrt(std::max(1.0, r / c));
}

class Muon : public Optimizer {
 public:
  Muon(const OptimizerOptions& options, std::vector<Parameter> matrices, std::vector<Parameter> others)
      : options_(options),
        flat_(std::move(matrices), options, {"momentum_buffer"}),
        adamw_(make_adamw(options, std::move(others))) {}

  std::vector<std::pair<std::string, at::Tensor>> state() override {
    auto result = flat_.state();
    for (auto& entry : adamw_->state()) result.push_back(std::move(entry));
    return result;
  }

 protected:
  void update(int64_t step, double lr, double grad_scale) override {
    const at::NoGradGuard no_grad;
    for (const auto& slot : flat_.slots()) {
      const at::Tensor& p = slot.parameter.tensor;
      const int64_t rows = p.size(-2), cols = p.size(-1), size = rows * cols;
      const at::Tensor parameter = p.view({-1, rows, cols}), gradient = slot.parameter.grad.view({-1, rows, cols}),
                       momentum = slot.state[0].view({-1, rows, cols});  // [experts or 1, rows, cols]
      const double keep = 1 - lr * slot.weight_decay, rate = lr * adjusted(options_.adjust_lr_fn, rows, cols);
      for (int64_t e = 0; e < parameter.size(0); ++e) {
        const at::Tensor o = orthogonalise(direction(gradient[e], momentum[e], grad_scale), options_);
        if (!flat_.fast()) {
          kernels::ref::muon_apply(parameter[e], o, keep, rate);
          continue;
        }
        const bool bf16 = p.scalar_type() == at::kBFloat16;
        char* to = static_cast<char*>(parameter[e].data_ptr());
        const float* from = o.const_data_ptr<float>();
        for_range(size, [&](int64_t begin, int64_t end) {
          kernels::muon_apply(to + begin * (bf16 ? 2 : 4), bf16, from + begin, end - begin, static_cast<float>(keep),
                              static_cast<float>(rate));
        });
      }
      if (options_.clear_grad) slot.parameter.grad.zero_();
    }
    adamw_->set_step(step - 1);
    adamw_->step(lr * options_.adamw_lr_factor, grad_scale);
  }

 private:
  // Updates the momentum and returns what is to be orthogonalised, [rows, cols].
  at::Tensor direction(const at::Tensor& gradient, const at::Tensor& momentum, double grad_scale) const {
    if (!flat_.fast())
      return kernels::ref::muon_momentum(gradient, momentum, grad_scale, options_.momentum, options_.nesterov);
    at::Tensor out = at::empty_like(momentum);
    float *to = out.data_ptr<float>(), *m = momentum.data_ptr<float>();
    const float* g = gradient.const_data_ptr<float>();
    for_range(out.numel(), [&](int64_t begin, int64_t end) {
      kernels::muon_momentum(to + begin, g + begin, m + begin, end - begin, static_cast<float>(grad_scale),
                             static_cast<float>(options_.momentum), options_.nesterov);
    });
    return out;
  }

  OptimizerOptions options_;
  FlatState flat_;
  std::unique_ptr<Optimizer> adamw_;
};

}  // namespace

std::unique_ptr<Optimizer> make_muon(const OptimizerOptions& options, std::vector<Parameter> parameters) {
  std::vector<Parameter> matrices, others;
  for (auto& parameter : parameters) {
    if (parameter.role != Role::matrix) {
      others.push_back(std::move(parameter));
      continue;
    }
    if (!parameter.tensor.defined() || parameter.tensor.dim() < 2)
      throw std::invalid_argument(fmt::format(
          "optim.name: muon works on whole matrices, but '{}' has {} dimension(s); a rank must own all of it",
          parameter.name, parameter.tensor.defined() ? parameter.tensor.dim() : 0));
    matrices.push_back(std::move(parameter));
  }
  return std::make_unique<Muon>(options, std::move(matrices), std::move(others));
}

}  // namespace cairn::optim
