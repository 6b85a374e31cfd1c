#include "models/layers/linear.h"

#include "models/kernels/available.h"
#include "models/kernels/linear.h"
#include "models/kernels/ref/linear.h"

namespace cairn::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// Autograd takes an absent tensor as an empty optional, not as an undefined one.
std::optional<at::Tensor> optional(const at::Tensor& t) {
  return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt;
}

// The weight's gradient goes straight into weight.grad inside the product, so autograd gets none for it.
struct LinearFunction : torch::autograd::Function<LinearFunction> {
  static Variable forward(AutogradContext* ctx, const Variable& x, const Variable& weight,
                          const std::optional<Variable>& given_bias) {
    const at::Tensor bias = given_bias.value_or(at::Tensor());
    ctx->save_for_backward({x, weight, bias});
    return kernels::linear_forward(x, weight, bias);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &bias = saved[2];
    const at::Tensor dy = grads[0].contiguous();
    if (weight.requires_grad()) {
      kernels::linear_backward_weight_(weight.grad(), bias.defined() ? bias.grad() : at::Tensor(), dy, x);
    }
    at::Tensor dx;
    if (ctx->needs_input_grad(0)) dx = kernels::linear_backward_input(dy, weight);
    return {dx, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

Linear::Linear(Parameters& parameters, const std::vector<Parameters::Part>& parts, int64_t in_features,
               const LinearOptions& options)
    : cut_(options.cut) {
  auto named = [&](const char* suffix) {
    std::vector<Parameters::Part> all = parts;
    for (auto& part : all) part.name += suffix;
    return all;
  };
  weight = parameters.stack(named(".weight"), in_features, Role::matrix, Init::normal(options.init_std));
  if (options.bias) bias = parameters.stack(named(".bias"), 0, Role::bias, Init::constant(0));
}

at::Tensor Linear::forward(const at::Tensor& input, const Pass& pass) const {
  const at::Tensor x = pass.seams->linear_input(input, cut_);
  at::Tensor y;
  if (pass.products != x.scalar_type() || pass.products != weight.scalar_type()) {
    // bf16-mixed: operands are rounded, the residual stream and the master weights stay float32.
    y = kernels::ref::linear(x.to(pass.products), weight.to(pass.products),
                             bias.defined() ? bias.to(pass.products) : bias)
            .to(x.scalar_type());
  } else if (pass.way(x) != kernels::Way::cpu && (pass.reference || x.is_cpu())) {
    y = kernels::ref::linear(x, weight, bias);
  } else {
    y = LinearFunction::apply(x, weight, optional(bias));
  }
  return pass.seams->linear_output(y, cut_);
}

}  // namespace cairn::models
