#include "models/layers/feed_forward.h"

#include "models/kernels/cuda/table.h"
#include "models/kernels/linear.h"
#include "models/kernels/ref/activation.h"

namespace cairn::models {
namespace {

using kernels::Activation;
using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

struct ActivationFunction : torch::autograd::Function<ActivationFunction> {
  static Variable forward(AutogradContext* ctx, const Variable& x, int64_t kind, bool gated) {
    ctx->save_for_backward({x});
    ctx->saved_data["kind"] = kind;
    ctx->saved_data["gated"] = gated;
    return gated ? kernels::gated_forward(x, static_cast<Activation>(kind))
                 : kernels::activation_forward(x, static_cast<Activation>(kind));
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const at::Tensor x = ctx->get_saved_variables()[0];
    const auto kind = static_cast<Activation>(ctx->saved_data["kind"].toInt());
    const at::Tensor dy = grads[0].contiguous();
    return {ctx->saved_data["gated"].toBool() ? kernels::gated_backward(dy, x, kind)
                                              : kernels::activation_backward(dy, x, kind),
            at::Tensor(), at::Tensor()};
  }
};

// down(act(gate) * up): only gate and up are kept; the backward pass gets the hidden values again beside their
// gradient.
struct GatedDownFunction : torch::autograd::Function<GatedDownFunction> {
  static Variable forward(AutogradContext* ctx, const Variable& gate_up, const Variable& weight,
                          const std::optional<Variable>& given_bias, int64_t kind) {
    const at::Tensor bias = given_bias.value_or(at::Tensor());
    ctx->save_for_backward({gate_up, weight, bias});
    ctx->saved_data["kind"] = kind;
    return kernels::linear_forward(kernels::gated_forward(gate_up, static_cast<Activation>(kind)), weight, bias);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &gate_up = saved[0], &weight = saved[1], &bias = saved[2];
    const at::Tensor dy = grads[0].contiguous();                       // [N, C]
    const at::Tensor dh = kernels::linear_backward_input(dy, weight);  // [N, F]
    // In place: dh becomes h. The kept gate_up is read once and becomes its own gradient.
    const at::Tensor dgate_up = kernels::gated_backward(
        dh, gate_up, static_cast<Activation>(ctx->saved_data["kind"].toInt()), gate_up.detach(), dh);
    if (weight.requires_grad()) {
      kernels::linear_backward_weight_(weight.grad(), bias.defined() ? bias.grad() : at::Tensor(), dy, dh);
    }
    return {dgate_up, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

FeedForward::FeedForward(Parameters& parameters, const std::string& name, int64_t hidden_size,
                         const FeedForwardConfig& config)
    : config_(config) {
  std::vector<Parameters::Part> up;
  if (config.gated) up.push_back({name + ".gate_proj", config.intermediate_size});
  up.push_back({name + ".up_proj", config.intermediate_size});
  up_ =
      Linear(parameters, up, hidden_size, {.bias = config.bias, .init_std = config.init_std, .cut = LinearCut::column});
  down_ = Linear(parameters, {{name + ".down_proj", hidden_size}}, config.intermediate_size,
                 {.bias = config.bias, .init_std = config.out_init_std, .cut = LinearCut::row});
}

at::Tensor FeedForward::forward(const at::Tensor& x, const Pass& pass) const {
  const at::Tensor up = up_.forward(x, pass);  // [N, 2F] or [N, F]
  const bool fast = pass.way(up) == kernels::Way::cpu ||
                    (pass.way(up) == kernels::Way::device && !pass.aten && kernels::cuda::available(up));
  const bool plain = pass.products == up.scalar_type() && pass.products == down_.weight.scalar_type();
  if (fast && config_.gated && plain && !pass.seams->exchanges_linear()) {
    const auto bias = down_.bias.defined() ? std::optional<at::Tensor>(down_.bias) : std::nullopt;
    return GatedDownFunction::apply(up, down_.weight, bias, static_cast<int64_t>(config_.activation));
  }
  at::Tensor h;  // [N, F]
  if (!fast) {
    h = config_.gated ? kernels::ref::gated(up, config_.activation) : kernels::ref::activation(up, config_.activation);
  } else {
    h = ActivationFunction::apply(up, static_cast<int64_t>(config_.activation), config_.gated);
  }
  return down_.forward(h, pass);
}

}  // namespace cairn::models
