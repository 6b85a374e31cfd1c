#include "models/layers/gated_delta_net.h"

#include "models/kernels/aten/delta_rule.h"
#include "models/kernels/causal_conv.h"
#include "models/kernels/cuda/launchers_delta.h"
#include "models/kernels/cuda/table.h"
#include "models/kernels/delta_gates.h"
#include "models/kernels/delta_rule.h"
#include "models/kernels/gated_norm.h"
#include "models/kernels/ref/causal_conv.h"
#include "models/kernels/ref/delta_rule.h"
#include "models/kernels/ref/gated_norm.h"

namespace cairn::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

constexpr double kNormOfKeys = 1e-6;  // eps of the L2 norm of q and k, whatever the model's other norms have

// What stands between the two projections, without its weights.
struct Core : torch::CustomClassHolder {
  DeltaNetConfig config;
  kernels::ConvOptions conv;
  kernels::DeltaRuleOptions rule;
  bool keep = false;  // a backward pass will follow

  // Parts of the fused product [N, product]: z [N, Hk, Hv / Hk, Dv] and ba [N, 2 Hv].
  at::Tensor z(const at::Tensor& product) const {
    const int64_t group = config.num_value_heads / config.num_key_heads, values = group * config.value_head_dim;
    return product.narrow(1, 0, config.qkvz_width())
        .unflatten(1, {config.num_key_heads, 2 * config.key_head_dim + 2 * values})
        .narrow(2, 2 * config.key_head_dim + values, values)
        .unflatten(2, {group, config.value_head_dim});
  }
  at::Tensor ba(const at::Tensor& product) const {
    return product.narrow(1, config.qkvz_width(), 2 * config.num_value_heads);
  }
  // q [N, Hk, Dk], k [N, Hk, Dk], v [N, Hv, Dv] of what the convolution gives [N, conv_width].
  std::array<at::Tensor, 3> qkv(const at::Tensor& mixed) const {
    const int64_t key = config.key_width();
    const auto part = [&](int64_t begin, int64_t heads, int64_t dim) {
      return mixed.narrow(1, begin, heads * dim).unflatten(1, {heads, dim});
    };
    return {part(0, config.num_key_heads, config.key_head_dim), part(key, config.num_key_heads, config.key_head_dim),
            part(2 * key, config.num_value_heads, config.value_head_dim)};
  }
  at::Tensor heads(const at::Tensor& out) const {  // [N, Hv Dv] -> [N, Hv, Dv]
    return out.view({out.size(0), config.num_value_heads, config.value_head_dim});
  }
};

at::Tensor gradient_of(const at::Tensor& parameter) {
  return parameter.requires_grad() ? parameter.grad() : at::Tensor();
}
at::Tensor taps_of(const at::Tensor& conv_weight) { return conv_weight.detach().squeeze(1); }

// product [N, product] -> [N, Hv Dv]; the gradients of the small weights go straight into their .grad.
struct CoreFunction : torch::autograd::Function<CoreFunction> {
  static Variable forward(AutogradContext* ctx, const Variable& product, const Variable& conv_weight,
                          const Variable& A_log, const Variable& dt_bias, const Variable& norm_weight,
                          const c10::intrusive_ptr<Core>& core) {
    const at::Tensor mixed = kernels::causal_conv_forward(product, taps_of(conv_weight), core->conv);
    const auto gates = kernels::delta_gates_forward(core->ba(product), A_log, dt_bias, core->config.num_key_heads);
    const auto [q, k, v] = core->qkv(mixed);
    const auto rule = kernels::delta_rule_forward(q, k, v, gates.g, gates.beta, core->rule, core->keep);
    const auto out =
        kernels::gated_norm_forward(core->heads(rule.out), core->z(product), norm_weight, core->config.norm_eps);
    if (core->keep) {
      ctx->save_for_backward({product, conv_weight, A_log, dt_bias, norm_weight, mixed, gates.g, gates.beta, rule.out,
                              rule.corrections, rule.states, out.rstd});
      ctx->saved_data["core"] = c10::IValue::make_capsule(core);
    }
    return out.y.view({product.size(0), -1});
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto core = c10::static_intrusive_pointer_cast<Core>(ctx->saved_data["core"].toCapsule());
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &product = saved[0], &conv_weight = saved[1], &A_log = saved[2], &dt_bias = saved[3],
                     &norm_weight = saved[4], &mixed = saved[5];
    const kernels::DeltaGatesOutput gates{saved[6], saved[7]};
    const kernels::DeltaRuleOutput rule{saved[8], saved[9], saved[10]};
    const at::Tensor dproduct = at::empty(product.sizes(), product.options());
    const at::Tensor dout =
        kernels::gated_norm_backward(core->heads(grads[0].contiguous()), core->heads(rule.out), core->z(product),
                                     norm_weight, saved[11], core->z(dproduct), gradient_of(norm_weight));
    const at::Tensor dmixed = at::empty(mixed.sizes(), mixed.options());
    const at::Tensor dg = at::empty(gates.g.sizes(), gates.g.options()), dbeta = at::empty_like(dg);
    const auto [q, k, v] = core->qkv(mixed);
    const auto [dq, dk, dv] = core->qkv(dmixed);
    kernels::delta_rule_backward(dout.view({product.size(0), -1}), q, k, v, gates.g, gates.beta, rule, core->rule, dq,
                                 dk, dv, dg, dbeta);
    kernels::delta_gates_backward(dg, dbeta, gates, core->ba(product), A_log, dt_bias, core->config.num_key_heads,
                                  core->ba(dproduct), gradient_of(A_log), gradient_of(dt_bias));
    const at::Tensor dconv = gradient_of(conv_weight);
    kernels::causal_conv_backward(dmixed, product, taps_of(conv_weight), core->conv, dproduct,
                                  dconv.defined() ? dconv.squeeze(1) : dconv);
    return {dproduct, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

// Rows that follow those of the cache.
at::Tensor decode(const Core& core, const at::Tensor& product, const at::Tensor& conv_weight, const at::Tensor& A_log,
                  const at::Tensor& dt_bias, const at::Tensor& norm_weight, const LayerCache& cache, bool fast) {
  at::NoGradGuard no_grad;
  const at::Tensor &history = cache.states.at(0), &state = cache.states.at(1), taps = taps_of(conv_weight);
  const int64_t N = product.size(0);
  if (fast) {
    const at::Tensor mixed = kernels::causal_conv_decode(product, taps, history, core.conv);
    const auto gates = kernels::delta_gates_forward(core.ba(product), A_log, dt_bias, core.config.num_key_heads);
    const auto [q, k, v] = core.qkv(mixed);
    const at::Tensor out = kernels::delta_rule_decode(q, k, v, gates.g, gates.beta, state, core.rule);
    return kernels::gated_norm_forward(core.heads(out), core.z(product), norm_weight, core.config.norm_eps)
        .y.view({N, -1});
  }
  const at::Tensor mixed = kernels::ref::causal_conv(product, taps, core.conv, history);
  const auto [g, beta] = kernels::ref::delta_gates(core.ba(product), A_log, dt_bias, core.config.num_key_heads);
  const auto [q, k, v] = core.qkv(mixed);
  const at::Tensor out = kernels::ref::delta_rule(q, k, v, g, beta, core.rule, state);
  return kernels::ref::gated_norm(core.heads(out), core.z(product), norm_weight, core.config.norm_eps).view({N, -1});
}

}  // namespace

GatedDeltaNet::GatedDeltaNet(Parameters& parameters, const std::string& name, int64_t hidden_size,
                             const DeltaNetConfig& config, int64_t block)
    : config_(config), block_(block) {
  in_proj_ = Linear(parameters,
                    {{name + ".in_proj_qkvz", config.qkvz_width()}, {name + ".in_proj_ba", 2 * config.num_value_heads}},
                    hidden_size, {.init_std = config.init_std, .cut = LinearCut::none});
  // Neither a matrix (Muon would make it orthogonal) nor decayed.
  conv_weight_ = parameters.add(name + ".conv1d.weight", {config.conv_width(), 1, config.conv_kernel}, Role::bias,
                                Init::normal(config.init_std));
  A_log_ = parameters.add(name + ".A_log", {config.num_value_heads}, Role::bias, Init::log_uniform(0.01, 16));
  dt_bias_ = parameters.add(name + ".dt_bias", {config.num_value_heads}, Role::bias, Init::constant(1));
  norm_weight_ = parameters.add(name + ".norm.weight", {config.value_head_dim}, Role::norm, Init::constant(1));
  out_proj_ = Linear(parameters, {{name + ".out_proj", hidden_size}}, config.value_width(),
                     {.init_std = config.out_init_std, .cut = LinearCut::none});
}

at::Tensor GatedDeltaNet::forward(const at::Tensor& x, const Pass& pass) const {
  const at::Tensor product = in_proj_.forward(x, pass);  // [N, product]

  auto core = c10::make_intrusive<Core>();
  core->config = config_;
  const int64_t group = config_.num_value_heads / config_.num_key_heads, values = group * config_.value_head_dim,
                Dk = config_.key_head_dim, block = 2 * Dk + 2 * values, key = config_.key_width();
  for (int64_t h = 0; h < config_.num_key_heads; ++h) {
    core->conv.runs.push_back({h * block, h * Dk, Dk});
    core->conv.runs.push_back({h * block + Dk, key + h * Dk, Dk});
    core->conv.runs.push_back({h * block + 2 * Dk, 2 * key + h * values, values});
  }
  core->conv.batch = core->rule.batch = pass.batch;
  core->conv.segments = core->rule.segments = pass.segments;
  core->rule.scale = 1 / std::sqrt(static_cast<double>(Dk));
  core->rule.eps = kNormOfKeys;
  core->keep = at::GradMode::is_enabled() && product.requires_grad();

  const kernels::Way way = pass.way(product);
  const bool fast = way == kernels::Way::cpu ||
                    (way == kernels::Way::device && !pass.aten && kernels::cuda::available(product) &&
                     Dk <= kernels::cuda::kDeltaMaxKey && config_.conv_kernel <= kernels::cuda::kConvMaxTaps);
  at::Tensor out;  // [N, Hv Dv]
  if (pass.cache) {
    const LayerCache& cache = pass.cache->layers.at(block_);
    out = decode(*core, product, conv_weight_, A_log_, dt_bias_, norm_weight_, cache,
                 fast && cache.states.at(0).scalar_type() == product.scalar_type());
  } else if (fast) {
    out = CoreFunction::apply(product, conv_weight_, A_log_, dt_bias_, norm_weight_, core);
  } else {
    const at::Tensor mixed = kernels::ref::causal_conv(product, conv_weight_.squeeze(1), core->conv);
    const auto [g, beta] = kernels::ref::delta_gates(core->ba(product), A_log_, dt_bias_, config_.num_key_heads);
    const auto [q, k, v] = core->qkv(mixed);
    const at::Tensor rule = pass.reference ? kernels::ref::delta_rule(q, k, v, g, beta, core->rule)
                                           : kernels::aten::delta_rule(q, k, v, g, beta, core->rule);
    out = kernels::ref::gated_norm(core->heads(rule), core->z(product), norm_weight_, config_.norm_eps)
              .reshape({product.size(0), -1});
  }
  return out_proj_.forward(out, pass);
}

LayerCache GatedDeltaNet::make_cache(int64_t, const at::TensorOptions& options) const {
  LayerCache cache;
  cache.states.push_back(at::zeros({config_.conv_kernel - 1, config_.product_width()}, options));
  cache.states.push_back(
      at::zeros({config_.num_value_heads, config_.key_head_dim, config_.value_head_dim}, options.dtype(at::kFloat)));
  return cache;
}

}  // namespace cairn::models
