#include "models/layers/experts.h"

#include "models/kernels/cuda/table.h"
#include "models/kernels/ref/grouped_linear.h"
#include "models/kernels/ref/linear.h"
#include "models/kernels/ref/router.h"
#include "models/layers/capture.h"
#include "models/layers/measured.h"

namespace cairn::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

std::optional<at::Tensor> optional(const at::Tensor& t) {
  return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt;
}

at::Tensor gradient_of(const at::Tensor& parameter) {
  return parameter.defined() && parameter.requires_grad() ? parameter.grad() : at::Tensor();
}

// Everything of a routing that is not a differentiable tensor.
struct Route : torch::CustomClassHolder {
  kernels::RouterOptions options;
  kernels::Routing routing;
  kernels::RouterAux aux;
};

// The weights of the chosen experts as a function of the logits; the auxiliary losses join in the backward pass.
struct RouteFunction : torch::autograd::Function<RouteFunction> {
  static Variable forward(AutogradContext* ctx, const Variable& logits, const c10::intrusive_ptr<Route>& route) {
    ctx->save_for_backward({logits});
    ctx->saved_data["route"] = c10::IValue::make_capsule(route);
    return route->routing.weights.detach();
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto route = c10::static_intrusive_pointer_cast<Route>(ctx->saved_data["route"].toCapsule());
    const at::Tensor logits = ctx->get_saved_variables()[0];
    return {kernels::route_backward(grads[0].contiguous(), logits, route->routing, route->options, route->aux),
            at::Tensor()};
  }
};

// y as it is; the backward pass adds the gradient of `loss`.
struct AddLossFunction : torch::autograd::Function<AddLossFunction> {
  static Variable forward(AutogradContext* ctx, const Variable& y, const Variable& loss) {
    ctx->saved_data["like"] = loss.detach();
    return y.view_as(y);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    return {grads[0], at::ones_like(ctx->saved_data["like"].toTensor())};
  }
};

struct Rows : torch::CustomClassHolder {
  kernels::ExpertRows rows;
  kernels::ExpertGate gate;
};

// Gathering, both products, the gate between them and the joining of the slots in one; gate and up alone are kept. The
// gradients of the weights go straight into theirs.
struct ExpertsFunction : torch::autograd::Function<ExpertsFunction> {
  static Variable forward(AutogradContext* ctx, const Variable& x, const Variable& weights, const Variable& gate_up,
                          const std::optional<Variable>& gate_up_bias, const Variable& down,
                          const std::optional<Variable>& down_bias, const c10::intrusive_ptr<Rows>& rows, bool keep) {
    const kernels::ExpertWeights w{gate_up, gate_up_bias.value_or(at::Tensor()), down,
                                   down_bias.value_or(at::Tensor())};
    const auto out = kernels::experts_forward(x, weights, rows->rows, w, rows->gate, keep);
    if (keep) {
      ctx->save_for_backward({x, weights, w.gate_up, w.gate_up_bias, w.down, w.down_bias, out.gate_up});
      ctx->saved_data["rows"] = c10::IValue::make_capsule(rows);
    }
    return out.y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto rows = c10::static_intrusive_pointer_cast<Rows>(ctx->saved_data["rows"].toCapsule());
    const auto saved = ctx->get_saved_variables();
    const kernels::ExpertWeights w{saved[2], saved[3], saved[4], saved[5]},
        gradients{gradient_of(saved[2]), gradient_of(saved[3]), gradient_of(saved[4]), gradient_of(saved[5])};
    const auto out = kernels::experts_backward(grads[0].contiguous(), saved[0], saved[1], rows->rows, w, rows->gate,
                                               saved[6], gradients);
    return {out.dx, out.dweights, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

Experts::Experts(Parameters& parameters, const std::string& name, int64_t hidden_size, const ExpertsConfig& config,
                 int64_t block)
    : config_(config), block_(block) {
  const int64_t E = config.num_experts, F = config.moe_intermediate_size;
  if (config.num_experts_per_tok < 1 || config.num_experts_per_tok > E) {
    throw std::invalid_argument(fmt::format("{}: {} of {} experts: expected at least one and at most all", name,
                                            config.num_experts_per_tok, E));
  }
  options_.scoring = static_cast<kernels::RouterOptions::Scoring>(config.scoring);
  options_.topk = config.num_experts_per_tok;
  options_.normalise = config.norm_topk_prob;
  options_.scale = config.routed_scaling_factor;
  options_.groups = config.n_group, options_.topk_groups = config.topk_group;
  gate_kind_ = {.activation = config.activation,
                .clamped = config.gate == ExpertsConfig::Gate::clamped,
                .alpha = config.swiglu_alpha,
                .limit = config.swiglu_limit};

  gate_ = Linear(parameters, {{name + "." + config.gate_name, E}}, hidden_size,
                 {.bias = config.router_bias, .init_std = config.init_std});
  if (config.correction_bias)
    correction_bias_ = parameters.add_buffer(name + "." + config.gate_name + ".e_score_correction_bias", {E}, 0);
  std::vector<Parameters::Part> up, down, up_bias, down_bias;
  for (int64_t e = 0; e < E; ++e) {
    const std::string expert = fmt::format("{}.experts.{}", name, e);
    up.push_back({expert + ".gate_proj.weight", F});
    up.push_back({expert + ".up_proj.weight", F});
    up_bias.push_back({expert + ".gate_proj.bias", F});
    up_bias.push_back({expert + ".up_proj.bias", F});
    down.push_back({expert + ".down_proj.weight", hidden_size});
    down_bias.push_back({expert + ".down_proj.bias", hidden_size});
  }
  weights_.gate_up = parameters.stack(up, hidden_size, Role::matrix, Init::normal(config.init_std));
  weights_.down = parameters.stack(down, F, Role::matrix, Init::normal(config.out_init_std));
  if (config.bias) {
    weights_.gate_up_bias = parameters.stack(up_bias, 0, Role::bias, Init::constant(0));
    weights_.down_bias = parameters.stack(down_bias, 0, Role::bias, Init::constant(0));
  }
  if (config.shared_intermediate_size > 0) {
    shared_.emplace(parameters, name + "." + config.shared_name, hidden_size,
                    FeedForwardConfig{.intermediate_size = config.shared_intermediate_size,
                                      .activation = config.activation,
                                      .init_std = config.init_std,
                                      .out_init_std = config.out_init_std});
    if (config.shared_gate)
      shared_gate_ =
          Linear(parameters, {{name + ".shared_expert_gate", 1}}, hidden_size, {.init_std = config.init_std});
  }
}

kernels::RouterAux Experts::auxiliary(const kernels::Routing& routing, const Pass& pass) const {
  const ExpertsPass& wanted = pass.experts;
  kernels::RouterAux aux;
  if (!at::GradMode::is_enabled()) return aux;
  if (wanted.router_z_loss > 0) aux.z = wanted.router_z_loss * pass.row_scale;
  if (wanted.balance.defined()) aux.balance = wanted.balance.to(routing.scores.device()).view({1, -1});
  if (wanted.sequence_aux_loss > 0) {
    // DeepSeek-V3, equations 17 to 20: f of expert i = E / (k T) * tokens of the sequence that chose it.
    const int64_t E = config_.num_experts, k = config_.num_experts_per_tok, S = pass.batch, T = pass.length;
    const at::Tensor chosen = routing.experts.to(at::kLong).view({S, T * k});
    const at::Tensor counts = at::zeros({S, E}, routing.scores.options())
                                  .scatter_add_(1, chosen, at::ones({S, T * k}, routing.scores.options()));
    const double factor =
        wanted.sequence_aux_loss * pass.row_scale * static_cast<double>(E) / static_cast<double>(k * T);
    const at::Tensor balance = counts * factor;
    aux.balance = aux.balance.defined() ? (balance + aux.balance).contiguous() : balance;
  }
  return aux;
}

void Experts::measure(const kernels::Routing& routing, const kernels::RouterAux& aux, const Pass& pass) const {
  if (pass.capture) pass.capture->experts(block_, routing.experts.detach(), config_.num_experts);
  if (!pass.measured) return;
  const at::Tensor experts = routing.experts.detach();
  pass.measured->count_experts(block_,
                               at::bincount(experts.reshape({-1}).to(at::kLong), {}, config_.num_experts).cpu());
  const int64_t N = experts.size(0);
  double entropy = 0;
  if (routing.entropy.defined()) {
    const float* of_row = routing.entropy.const_data_ptr<float>();
    for (int64_t n = 0; n < N; ++n) entropy += of_row[n];
  } else {
    at::Tensor share = routing.scores.detach();
    if (config_.scoring == ExpertsConfig::Scoring::sigmoid) share = share / share.sum(-1, true);
    entropy = at::special_entr(share).sum(at::kDouble).item<double>();
  }
  pass.measured->add(block_, "router_entropy", entropy, static_cast<double>(N));
  if (!aux.balance.defined() && aux.z == 0) return;
  const at::Tensor loss = kernels::ref::router_aux_loss(
      {routing.experts, routing.weights.detach(), routing.scores.detach(), routing.lse.detach()}, options_, aux);
  // As it is in the loss: a mean over the global batch's rows already.
  pass.measured->add(block_, "router_loss", loss.item<double>() / pass.row_scale, static_cast<double>(N));
}

at::Tensor Experts::forward(const at::Tensor& x, const Pass& pass) const {
  // The router computes in float32 whatever the products are.
  const bool plain =
      pass.products == at::kFloat && x.scalar_type() == at::kFloat && gate_.weight.scalar_type() == at::kFloat;
  const at::Tensor logits =
      plain ? gate_.forward(x, pass)
            : kernels::ref::linear(x.to(at::kFloat), gate_.weight.to(at::kFloat),
                                   gate_.bias.defined() ? gate_.bias.to(at::kFloat) : gate_.bias);  // [N, E]
  const kernels::Way way = pass.way(x);
  const bool fast =
      (plain && way == kernels::Way::cpu) || (way == kernels::Way::device && !pass.aten && kernels::cuda::available(x));
  const bool training = at::GradMode::is_enabled();
  int64_t capacity = 0;
  if (pass.experts.capacity_factor > 0) {
    if (pass.seams->exchanges_tokens())
      throw std::invalid_argument("experts.capacity_factor counts by sequence, which no rank sees whole here");
    capacity = static_cast<int64_t>(
        std::ceil(pass.experts.capacity_factor * static_cast<double>(pass.length * config_.num_experts_per_tok) /
                  static_cast<double>(config_.num_experts)));
  }

  at::Tensor y;  // [N, C]
  if (fast) {
    auto route = c10::make_intrusive<Route>();
    route->options = options_;
    route->routing = kernels::route(logits.detach().contiguous(), correction_bias_, options_);
    route->aux = auxiliary(route->routing, pass);
    measure(route->routing, route->aux, pass);
    at::Tensor weights = RouteFunction::apply(logits, route);
    auto rows = c10::make_intrusive<Rows>();
    at::Tensor sent = x, experts = route->routing.experts;
    pass.seams->expert_input(sent, experts, weights);
    rows->rows = kernels::sort_by_expert(experts, config_.num_experts, capacity, pass.batch);
    rows->gate = gate_kind_;
    y = ExpertsFunction::apply(sent.to(pass.products).contiguous(), weights.contiguous(), weights_.gate_up,
                               optional(weights_.gate_up_bias), weights_.down, optional(weights_.down_bias), rows,
                               training)
            .to(x.scalar_type());
  } else {
    const kernels::Routing routing = kernels::ref::route(logits, correction_bias_, options_);
    const kernels::RouterAux aux = auxiliary(routing, pass);
    measure(routing, aux, pass);
    at::Tensor kept;
    if (capacity > 0) kept = kernels::ref::within_capacity(routing.experts, config_.num_experts, capacity, pass.batch);
    at::Tensor sent = x, experts = routing.experts, weights = routing.weights;
    pass.seams->expert_input(sent, experts, weights);
    y = kernels::ref::experts(sent.to(pass.products), experts, weights, kept, weights_, gate_kind_).to(x.scalar_type());
    if (const at::Tensor loss = training ? kernels::ref::router_aux_loss(routing, options_, aux) : at::Tensor();
        loss.defined()) {
      y = AddLossFunction::apply(y, loss);
    }
  }
  y = pass.seams->expert_output(y);
  if (!shared_) return y;
  at::Tensor shared = shared_->forward(x, pass);
  if (shared_gate_.weight.defined()) shared = shared * at::sigmoid(shared_gate_.forward(x, pass));
  return y + shared;
}

}  // namespace cairn::models
