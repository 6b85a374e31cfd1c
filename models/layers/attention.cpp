#include "models/layers/attention.h"

#include "models/kernels/attention.h"
#include "models/kernels/available.h"
#include "models/kernels/ref/attention.h"
#include "models/kernels/ref/rope.h"
#include "models/kernels/rope.h"

namespace cairn::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// Everything of an attention core that is not a differentiable tensor.
struct Core : torch::CustomClassHolder {
  kernels::AttentionOptions options;
  at::Tensor positions, cos, sin;  // cos undefined: no rotation
  bool interleaved = false;
  int64_t heads = 0, kv_heads = 0, head_dim = 0;

  // The three parts of a fused product [N, (H + 2K) D], as views.
  std::array<at::Tensor, 3> split(const at::Tensor& qkv) const {
    const at::Tensor x = qkv.view({qkv.size(0), heads + 2 * kv_heads, head_dim});
    return {x.narrow(1, 0, heads), x.narrow(1, heads, kv_heads), x.narrow(1, heads + kv_heads, kv_heads)};
  }
  void rotate(const at::Tensor& x, bool inverse) const {
    if (cos.defined()) kernels::rope_(x, positions, cos, sin, interleaved, inverse);
  }
};

// qkv [N, (H + 2K) D] -> [N, H D]. Rotates q and k inside qkv, which the caller gives up.
struct FusedFunction : torch::autograd::Function<FusedFunction> {
  static Variable forward(AutogradContext* ctx, const Variable& qkv, const c10::intrusive_ptr<Core>& core) {
    auto [q, k, v] = core->split(qkv);
    core->rotate(q, false);
    core->rotate(k, false);
    auto out = kernels::attention_forward(q, k, v, core->options);
    // The rotated values are what the backward pass wants; `detach` keeps autograd from taking the change for a mistake.
    ctx->save_for_backward({out.out});
    ctx->saved_data["qkv"] = qkv.detach();
    ctx->saved_data["lse"] = out.lse;
    ctx->saved_data["core"] = c10::IValue::make_capsule(core);
    return out.out;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto core = c10::static_intrusive_pointer_cast<Core>(ctx->saved_data["core"].toCapsule());
    const at::Tensor qkv = ctx->saved_data["qkv"].toTensor();
    auto [q, k, v] = core->split(qkv);
    const at::Tensor dqkv = at::empty_like(qkv);
    auto [dq, dk, dv] = core->split(dqkv);
    kernels::attention_backward(grads[0].contiguous(), q, k, v, ctx->get_saved_variables()[0], ctx->saved_data["lse"].toTensor(), core->options, dq, dk, dv);
    core->rotate(dq, true);
    core->rotate(dk, true);
    return {dqkv, at::Tensor()};
  }
};

// The same with q and k apart, as they are after their norms: q [N, H, D], k [N, K, D], both given up; v [N, K, D].
struct SplitFunction : torch::autograd::Function<SplitFunction> {
  static Variable forward(AutogradContext* ctx, const Variable& q, const Variable& k, const Variable& v, const c10::intrusive_ptr<Core>& core) {
    const at::Tensor q_rotated = q.detach(), k_rotated = k.detach();
    core->rotate(q_rotated, false);
    core->rotate(k_rotated, false);
    auto out = kernels::attention_forward(q_rotated, k_rotated, v, core->options);
    ctx->save_for_backward({v, out.out});
    ctx->saved_data["q"] = q_rotated;
    ctx->saved_data["k"] = k_rotated;
    ctx->saved_data["lse"] = out.lse;
    ctx->saved_data["core"] = c10::IValue::make_capsule(core);
    return out.out;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto core = c10::static_intrusive_pointer_cast<Core>(ctx->saved_data["core"].toCapsule());
    const auto saved = ctx->get_saved_variables();
    const at::Tensor q = ctx->saved_data["q"].toTensor(), k = ctx->saved_data["k"].toTensor();
    const at::Tensor dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), k.options()), dv = at::empty(k.sizes(), k.options());
    kernels::attention_backward(grads[0].contiguous(), q, k, saved[0], saved[1], ctx->saved_data["lse"].toTensor(), core->options, dq, dk, dv);
    core->rotate(dq, true);
    core->rotate(dk, true);
    return {dq, dk, dv, at::Tensor()};
  }
};

}  // namespace

Attention::Attention(Parameters& parameters, const std::string& name, int64_t hidden_size, const AttentionConfig& config, int64_t block,
                     std::shared_ptr<RopeTable> rope)
    : config_(config), block_(block), rope_(std::move(rope)) {
  const int64_t q_width = config.num_attention_heads * config.head_dim, kv_width = config.num_key_value_heads * config.head_dim;
  qkv_proj_ = Linear(parameters, {{name + ".q_proj", q_width}, {name + ".k_proj", kv_width}, {name + ".v_proj", kv_width}}, hidden_size,
                     {.bias = config.qkv_bias, .init_std = config.init_std, .cut = LinearCut::column});
  o_proj_ = Linear(parameters, {{name + ".o_proj", hidden_size}}, q_width,
                   {.bias = config.out_bias, .init_std = config.out_init_std, .cut = LinearCut::row});
  if (config.qk_norm != AttentionConfig::QkNorm::none) {
    const bool full = config.qk_norm == AttentionConfig::QkNorm::full;
    q_norm_ = Norm(parameters, name + ".q_norm", full ? q_width : config.head_dim, config.norm);
    k_norm_ = Norm(parameters, name + ".k_norm", full ? kv_width : config.head_dim, config.norm);
  }
  if (config_.scale == 0) config_.scale = 1 / std::sqrt(static_cast<double>(config.head_dim));
}

at::Tensor Attention::forward(const at::Tensor& x, const Pass& pass) const {
  const int64_t N = x.size(0), H = config_.num_attention_heads, K = config_.num_key_value_heads, D = config_.head_dim;
  at::Tensor qkv = qkv_proj_.forward(x, pass);  // [N, (H + 2K) D]

  auto core = c10::make_intrusive<Core>();
  core->heads = H, core->kv_heads = K, core->head_dim = D;
  core->positions = pass.positions;
  if (rope_) {
    core->interleaved = rope_->config().interleaved;
    const int64_t reach = pass.cache ? pass.cache->capacity : pass.length;
    std::tie(core->cos, core->sin) = rope_->get(reach, x.device());
  }
  core->options.batch = pass.batch;
  core->options.scale = config_.scale;
  core->options.window = config_.sliding_window;
  core->options.softcap = config_.softcap;
  core->options.segments = pass.segments;
  core->options.dropout = pass.dropout;
  core->options.dropout_key = pass.dropout_key(block_ * 4 + 1);

  const bool fast = !pass.reference && kernels::available(qkv);
  at::Tensor out;  // [N, H D]
  if (fast && !q_norm_.present() && !pass.cache && !pass.seams->exchanges_attention()) {
    out = FusedFunction::apply(qkv, core);
  } else {
    auto [q, k, v] = core->split(qkv);
    if (q_norm_.present()) {
      // Over each head of width D, or over the whole row.
      const bool full = config_.qk_norm == AttentionConfig::QkNorm::full;
      q = q_norm_.forward(full ? qkv.narrow(1, 0, H * D) : q, pass).view({N, H, D});
      k = k_norm_.forward(full ? qkv.narrow(1, H * D, K * D) : k, pass).view({N, K, D});
    }
    pass.seams->attention_input(q, k, v);
    if (pass.cache) {
      at::NoGradGuard no_grad;
      if (core->cos.defined()) {
        q = kernels::ref::rope(q, pass.positions, core->cos, core->sin, core->interleaved);
        k = kernels::ref::rope(k, pass.positions, core->cos, core->sin, core->interleaved);
      }
      KeyValueCache& cache = *pass.cache;
      cache.keys[block_].narrow(0, cache.length, N).copy_(k);
      cache.values[block_].narrow(0, cache.length, N).copy_(v);
      if (fast) {
        out = kernels::attention_decode(q.contiguous(), cache.keys[block_], cache.values[block_], cache.length + N, core->options);
      } else {
        out = kernels::ref::attention_decode(q, cache.keys[block_], cache.values[block_], cache.length + N, core->options);
      }
    } else if (fast) {
      out = SplitFunction::apply(q, k, v, core);
    } else {
      if (core->cos.defined()) {
        q = kernels::ref::rope(q, pass.positions, core->cos, core->sin, core->interleaved);
        k = kernels::ref::rope(k, pass.positions, core->cos, core->sin, core->interleaved);
      }
      out = kernels::ref::attention(q, k, v, core->options);
    }
  }
  return o_proj_.forward(pass.seams->attention_output(out), pass);
}

}  // namespace cairn::models
