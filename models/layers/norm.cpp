#include "models/layers/norm.h"

#include "models/kernels/cuda/table.h"
#include "models/kernels/norm.h"
#include "models/kernels/ref/norm.h"

namespace cairn::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// Autograd takes an absent tensor as an empty optional, not as an undefined one.
std::optional<at::Tensor> optional(const at::Tensor& t) {
  return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt;
}

at::Tensor gradient_of(const at::Tensor& parameter) {
  return parameter.defined() && parameter.requires_grad() ? parameter.grad() : at::Tensor();
}

// What a kernel on a GPU reads row by row: autograd may hand over any strides there.
at::Tensor rows_of(const at::Tensor& dy) { return dy.is_cpu() ? dy : dy.contiguous(); }

// (sum, y): the sum is an output of its own only where there is a residual.
struct RmsNormFunction : torch::autograd::Function<RmsNormFunction> {
  static variable_list forward(AutogradContext* ctx, const Variable& x, const std::optional<Variable>& given_residual,
                               const Variable& weight, double eps, double offset) {
    const at::Tensor residual = given_residual.value_or(at::Tensor());
    auto out = kernels::rms_norm_forward(x, residual, weight, eps, offset);
    ctx->save_for_backward({residual.defined() ? out.sum : x, weight, out.rstd});
    ctx->saved_data["offset"] = offset;
    ctx->set_materialize_grads(false);
    if (residual.defined()) return {out.y, out.sum};
    return {out.y};
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor dy = grads[0].defined() ? rows_of(grads[0]) : at::zeros_like(saved[0]);
    const at::Tensor dsum = grads.size() > 1 ? grads[1] : at::Tensor();
    const at::Tensor dx = kernels::rms_norm_backward(dy, dsum, saved[0], saved[1], saved[2],
                                                     ctx->saved_data["offset"].toDouble(), gradient_of(saved[1]));
    return {dx, grads.size() > 1 ? dx : at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

struct LayerNormFunction : torch::autograd::Function<LayerNormFunction> {
  static variable_list forward(AutogradContext* ctx, const Variable& x, const std::optional<Variable>& given_residual,
                               const Variable& weight, const std::optional<Variable>& given_bias, double eps) {
    const at::Tensor residual = given_residual.value_or(at::Tensor()), bias = given_bias.value_or(at::Tensor());
    auto out = kernels::layer_norm_forward(x, residual, weight, bias, eps);
    ctx->save_for_backward({residual.defined() ? out.sum : x, weight, bias, out.mean, out.rstd});
    ctx->set_materialize_grads(false);
    if (residual.defined()) return {out.y, out.sum};
    return {out.y};
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor dy = grads[0].defined() ? grads[0] : at::zeros_like(saved[0]);
    const at::Tensor dsum = grads.size() > 1 ? grads[1] : at::Tensor();
    const at::Tensor dx = kernels::layer_norm_backward(dy, dsum, saved[0], saved[1], saved[3], saved[4],
                                                       gradient_of(saved[1]), gradient_of(saved[2]));
    return {dx, grads.size() > 1 ? dx : at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

// Whether the hand-written kernels take x: all norms on the CPU, RMSNorm on a GPU.
bool fused(const at::Tensor& x, const Pass& pass, NormConfig::Kind kind) {
  const kernels::Way way = pass.way(x);
  if (way == kernels::Way::cpu) return true;
  return way == kernels::Way::device && !pass.aten && kind == NormConfig::Kind::rms && kernels::cuda::available(x);
}

}  // namespace

Norm::Norm(Parameters& parameters, const std::string& name, int64_t features, const NormConfig& config)
    : config_(config) {
  weight = parameters.add(name + ".weight", {features}, Role::norm, Init::constant(1 - config.offset));
  if (config.bias) bias = parameters.add(name + ".bias", {features}, Role::bias, Init::constant(0));
}

at::Tensor Norm::forward(const at::Tensor& x, const Pass& pass) const {
  if (!fused(x, pass, config_.kind)) {
    return config_.kind == NormConfig::Kind::rms ? kernels::ref::rms_norm(x, weight, config_.eps, config_.offset)
                                                 : kernels::ref::layer_norm(x, weight, bias, config_.eps);
  }
  return config_.kind == NormConfig::Kind::rms
             ? RmsNormFunction::apply(x, std::nullopt, weight, config_.eps, config_.offset)[0]
             : LayerNormFunction::apply(x, std::nullopt, weight, optional(bias), config_.eps)[0];
}

std::pair<at::Tensor, at::Tensor> Norm::add(const at::Tensor& x, const at::Tensor& residual, const Pass& pass) const {
  if (!fused(x, pass, config_.kind)) {
    const at::Tensor sum = x + residual;
    return {sum, forward(sum, pass)};
  }
  const auto out = config_.kind == NormConfig::Kind::rms
                       ? RmsNormFunction::apply(x, optional(residual), weight, config_.eps, config_.offset)
                       : LayerNormFunction::apply(x, optional(residual), weight, optional(bias), config_.eps);
  return {out[1], out[0]};
}

}  // namespace cairn::models
