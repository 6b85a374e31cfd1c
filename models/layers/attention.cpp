#include "models/layers/attention.h"

#include "models/kernels/aten/attention.h"
#include "models/kernels/attention.h"
#include "models/kernels/cuda/table.h"
#include "models/kernels/gated_norm.h"
#include "models/kernels/norm.h"
#include "models/kernels/paged_attention.h"
#include "models/kernels/ref/attention.h"
#include "models/kernels/ref/gated_norm.h"
#include "models/kernels/ref/paged_attention.h"
#include "models/kernels/ref/rope.h"
#include "models/kernels/rope.h"
#include "models/layers/attend.h"
#include "models/layers/capture.h"
#include "models/layers/paged_cache.h"

namespace cairn::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// Everything of an attention core that is not a differentiable tensor.
struct Core : torch::CustomClassHolder {
  kernels::AttentionOptions options;
  at::Tensor positions, cos, sin;  // cos undefined: no rotation
  bool interleaved = false, gated = false;
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  AttentionConfig::QkNorm qk_norm = AttentionConfig::QkNorm::none;
  double eps = 0, offset = 0;

  // The three parts of a fused product [N, (H + 2K) D], as views [N, H, D], [N, K, D], [N, K, D]. With a gate the first
  // part is [N, H, 2 D], each head's q and then its gate.
  std::array<at::Tensor, 3> split(const at::Tensor& qkv) const {
    if (gated) {
      const at::Tensor x =
          qkv.narrow(1, 2 * heads * head_dim, 2 * kv_heads * head_dim).view({qkv.size(0), 2 * kv_heads, head_dim});
      return {queries_and_gates(qkv).narrow(2, 0, head_dim), x.narrow(1, 0, kv_heads), x.narrow(1, kv_heads, kv_heads)};
    }
    const at::Tensor x = qkv.view({qkv.size(0), heads + 2 * kv_heads, head_dim});
    return {x.narrow(1, 0, heads), x.narrow(1, heads, kv_heads), x.narrow(1, heads + kv_heads, kv_heads)};
  }
  at::Tensor queries_and_gates(const at::Tensor& qkv) const {
    return qkv.narrow(1, 0, 2 * heads * head_dim).view({qkv.size(0), heads, 2 * head_dim});
  }
  // [N, H, 1, D], as kernels/gated_norm.h takes it.
  at::Tensor gates(const at::Tensor& qkv) const {
    return queries_and_gates(qkv).narrow(2, head_dim, head_dim).unsqueeze(2);
  }
  at::Tensor by_head(const at::Tensor& out) const { return out.view({out.size(0), heads, head_dim}); }
  // What q and k are normalised over: each head, or the whole row; views of the fused product.
  std::array<at::Tensor, 2> norm_rows(const at::Tensor& qkv) const {
    if (qk_norm == AttentionConfig::QkNorm::full)
      return {qkv.narrow(1, 0, heads * head_dim), qkv.narrow(1, heads * head_dim, kv_heads * head_dim)};
    const auto parts = split(qkv);
    return {parts[0], parts[1]};
  }
  void rotate(const at::Tensor& x, bool inverse) const {
    if (cos.defined()) kernels::rope_(x, positions, cos, sin, interleaved, inverse);
  }
};

// Autograd takes an absent tensor as an empty optional, not as an undefined one.
std::optional<at::Tensor> optional(const at::Tensor& t) {
  return t.defined() ? std::optional<at::Tensor>(t) : std::nullopt;
}

at::Tensor gradient_of(const at::Tensor& parameter) {
  return parameter.requires_grad() ? parameter.grad() : at::Tensor();
}

void add_sinks_gradient(const at::Tensor& sinks, const at::Tensor& dout, const at::Tensor& out, const at::Tensor& lse,
                        const kernels::AttentionOptions& options) {
  if (!sinks.defined() || !sinks.requires_grad()) return;
  kernels::attention_backward_sinks_(sinks.grad(), dout, out, lse, options);
}

// qkv [N, (H + 2K) D] -> [N, H D]: norm of q and k where there is one, rotation, attention. Without a norm q and k are
// rotated inside qkv, which the caller gives up; the backward pass works in place in the gradient of qkv.
struct FusedFunction : torch::autograd::Function<FusedFunction> {
  static Variable forward(AutogradContext* ctx, const Variable& qkv, const std::optional<Variable>& given_q_weight,
                          const std::optional<Variable>& given_k_weight, const std::optional<Variable>& sinks,
                          const c10::intrusive_ptr<Core>& core) {
    const at::Tensor q_weight = given_q_weight.value_or(at::Tensor()), k_weight = given_k_weight.value_or(at::Tensor());
    auto [q, k, v] = core->split(qkv);
    at::Tensor q_rstd, k_rstd;
    if (q_weight.defined()) {
      const auto rows = core->norm_rows(qkv);
      const auto q_out = kernels::rms_norm_forward(rows[0], {}, q_weight, core->eps, core->offset);
      const auto k_out = kernels::rms_norm_forward(rows[1], {}, k_weight, core->eps, core->offset);
      q = q_out.y.view(q.sizes()), k = k_out.y.view(k.sizes());
      q_rstd = q_out.rstd, k_rstd = k_out.rstd;
    }
    core->rotate(q, false);
    core->rotate(k, false);
    const auto out = kernels::attention_forward(q, k, v, core->options);
    // The kernels write through pointers, so autograd takes the rotated qkv for the one that it was given.
    const bool normed = q_weight.defined();
    ctx->save_for_backward({qkv, out.out, out.lse, normed ? q : at::Tensor(), normed ? k : at::Tensor(), q_weight,
                            k_weight, q_rstd, k_rstd, sinks.value_or(at::Tensor())});
    ctx->saved_data["core"] = c10::IValue::make_capsule(core);
    if (core->gated)
      return kernels::sigmoid_gate_forward(core->by_head(out.out), core->gates(qkv)).view(out.out.sizes());
    return out.out;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto core = c10::static_intrusive_pointer_cast<Core>(ctx->saved_data["core"].toCapsule());
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &qkv = saved[0], &q_weight = saved[5], &k_weight = saved[6];
    auto [q, k, v] = core->split(qkv);
    const bool normed = q_weight.defined();
    if (normed) q = saved[3], k = saved[4];
    const at::Tensor dqkv = at::empty(qkv.sizes(), qkv.options());
    auto [dq, dk, dv] = core->split(dqkv);
    at::Tensor dout = grads[0].contiguous();
    if (core->gated) {
      dout = kernels::sigmoid_gate_backward(core->by_head(dout), core->by_head(saved[1]), core->gates(qkv),
                                            core->gates(dqkv))
                 .view(dout.sizes());
      dq = at::empty(dq.sizes(), dq.options());  // attention wants the heads one after another
    }
    kernels::attention_backward(dout, q, k, v, saved[1], saved[2], core->options, dq, dk, dv);
    add_sinks_gradient(saved[9], dout, saved[1], saved[2], core->options);
    core->rotate(dq, true);
    core->rotate(dk, true);
    if (normed) {
      const auto rows = core->norm_rows(qkv), drows = core->norm_rows(dqkv);
      kernels::rms_norm_backward(core->gated ? dq : drows[0], {}, rows[0], q_weight, saved[7], core->offset,
                                 gradient_of(q_weight), drows[0]);
      kernels::rms_norm_backward(drows[1], {}, rows[1], k_weight, saved[8], core->offset, gradient_of(k_weight),
                                 drows[1]);
    }
    return {dqkv, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

// The same where a seam stands between the product and attention: q [N, H, D] and k [N, K, D], both normalised and both
// given up; v [N, K, D].
struct SplitFunction : torch::autograd::Function<SplitFunction> {
  static Variable forward(AutogradContext* ctx, const Variable& q, const Variable& k, const Variable& v,
                          const std::optional<Variable>& sinks, const c10::intrusive_ptr<Core>& core) {
    core->rotate(q, false);
    core->rotate(k, false);
    const auto out = kernels::attention_forward(q, k, v, core->options);
    ctx->save_for_backward({q, k, v, out.out, out.lse, sinks.value_or(at::Tensor())});
    ctx->saved_data["core"] = c10::IValue::make_capsule(core);
    return out.out;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto core = c10::static_intrusive_pointer_cast<Core>(ctx->saved_data["core"].toCapsule());
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &q = saved[0], &k = saved[1];
    const at::Tensor dq = at::empty(q.sizes(), q.options()), dk = at::empty(k.sizes(), k.options()),
                     dv = at::empty(k.sizes(), k.options());
    const at::Tensor dout = grads[0].contiguous();
    kernels::attention_backward(dout, q, k, saved[2], saved[3], saved[4], core->options, dq, dk, dv);
    add_sinks_gradient(saved[5], dout, saved[3], saved[4], core->options);
    core->rotate(dq, true);
    core->rotate(dk, true);
    return {dq, dk, dv, at::Tensor(), at::Tensor()};
  }
};

// The gate where it is not fused: out [N, H D], qkv the fused product.
struct GateFunction : torch::autograd::Function<GateFunction> {
  static Variable forward(AutogradContext* ctx, const Variable& out, const Variable& qkv,
                          const c10::intrusive_ptr<Core>& core) {
    ctx->save_for_backward({out, qkv});
    ctx->saved_data["core"] = c10::IValue::make_capsule(core);
    return kernels::sigmoid_gate_forward(core->by_head(out), core->gates(qkv)).view(out.sizes());
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto core = c10::static_intrusive_pointer_cast<Core>(ctx->saved_data["core"].toCapsule());
    const auto saved = ctx->get_saved_variables();
    const at::Tensor dqkv = at::zeros_like(saved[1]);
    const at::Tensor dout = kernels::sigmoid_gate_backward(
        core->by_head(grads[0].contiguous()), core->by_head(saved[0]), core->gates(saved[1]), core->gates(dqkv));
    return {dout.view(saved[0].sizes()), dqkv, at::Tensor()};
  }
};

// x [N, H, D] rotated by a kernel of the CUDA module, out of place.
struct RopeFunction : torch::autograd::Function<RopeFunction> {
  static Variable forward(AutogradContext* ctx, const Variable& x, const c10::intrusive_ptr<Core>& core) {
    ctx->saved_data["core"] = c10::IValue::make_capsule(core);
    const at::Tensor y = x.clone(at::MemoryFormat::Contiguous);
    core->rotate(y, false);
    return y;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto core = c10::static_intrusive_pointer_cast<Core>(ctx->saved_data["core"].toCapsule());
    const at::Tensor dx = grads[0].clone(at::MemoryFormat::Contiguous);
    core->rotate(dx, true);
    return {dx, at::Tensor()};
  }
};

// q and k rotated without a gradient, in place where the kernels do it.
void rotate_plain(const Core& core, at::Tensor& q, at::Tensor& k, bool fast) {
  q = q.detach(), k = k.detach();
  if (fast) {
    core.rotate(q, false);
    core.rotate(k, false);
  } else if (core.cos.defined()) {
    q = kernels::ref::rope(q, core.positions, core.cos, core.sin, core.interleaved);
    k = kernels::ref::rope(k, core.positions, core.cos, core.sin, core.interleaved);
  }
}

// Appends k and v [N, K, D] to the cache and attends from q [N, H, D]; q and k are given up.
at::Tensor attend_cached(const Core& core, SequenceCache& cache, int64_t block, at::Tensor q, at::Tensor k,
                         const at::Tensor& v, bool fast) {
  at::NoGradGuard no_grad;
  rotate_plain(core, q, k, fast);
  const int64_t length = cache.length + q.size(0);
  const at::Tensor &keys = cache.layers[block].rows[0], &values = cache.layers[block].rows[1];
  append_rows(keys, cache, k);
  append_rows(values, cache, v);
  return fast ? kernels::attention_decode(q.contiguous(), keys, values, length, core.options)
              : kernels::ref::attention_decode(q, keys, values, length, core.options);
}

// Writes k and v [N, K, D] into the pages and attends from q [N, H, D]: to the pages, or, where sequences start, to
// the rows beside it as in training; q and k are given up.
at::Tensor attend_paged(const Core& core, const PagedCache& cache, int64_t block, at::Tensor q, at::Tensor k,
                        const at::Tensor& v, kernels::Way way, at::ScalarType products) {
  at::NoGradGuard no_grad;
  const bool fast = way == kernels::Way::cpu;
  rotate_plain(core, q, k, fast);
  const kernels::KeyValuePages& pages = cache.layers.at(block);
  fast ? kernels::paged_store(pages, k, v, cache.slots) : kernels::ref::paged_store(pages, k, v, cache.slots);
  if (!cache.starts) {
    return fast ? kernels::paged_attention(q, pages, cache.table, cache.lengths, core.options)
                : kernels::ref::paged_attention(q, pages, cache.table, cache.lengths, core.options);
  }
  if (fast) return kernels::attention_forward(q, k, v, core.options).out;
  return way == kernels::Way::device ? kernels::aten::attention(q, k, v, core.options, products)
                                     : kernels::ref::attention(q, k, v, core.options);
}

}  // namespace

Attention::Attention(Parameters& parameters, const std::string& name, int64_t hidden_size,
                     const AttentionConfig& config, const std::optional<IndexerConfig>& indexer, int64_t block,
                     std::shared_ptr<RopeTable> rope)
    : config_(config), block_(block), rope_(std::move(rope)) {
  const int64_t q_width = config.num_attention_heads * config.head_dim,
                kv_width = config.num_key_value_heads * config.head_dim;
  qkv_proj_ = Linear(parameters,
                     {{name + ".q_proj", config.output_gate ? 2 * q_width : q_width},
                      {name + ".k_proj", kv_width},
                      {name + ".v_proj", kv_width}},
                     hidden_size, {.bias = config.qkv_bias, .init_std = config.init_std, .cut = LinearCut::column});
  if (config.output_gate && config.qk_norm != AttentionConfig::QkNorm::head)
    throw std::invalid_argument(name + ": an output gate stands with heads that are normalised one by one alone");
  o_proj_ = Linear(parameters, {{name + ".o_proj", hidden_size}}, q_width,
                   {.bias = config.out_bias, .init_std = config.out_init_std, .cut = LinearCut::row});
  if (config.qk_norm != AttentionConfig::QkNorm::none) {
    const bool full = config.qk_norm == AttentionConfig::QkNorm::full;
    q_norm_ = Norm(parameters, name + ".q_norm", full ? q_width : config.head_dim, config.norm);
    k_norm_ = Norm(parameters, name + ".k_norm", full ? kv_width : config.head_dim, config.norm);
  }
  if (config.sinks)
    sinks_ = parameters.add(name + ".sinks", {config.num_attention_heads}, Role::bias, Init::normal(config.init_std));
  if (indexer) indexer_.emplace(parameters, name + ".indexer", hidden_size, hidden_size, *indexer, block);
  if (config_.scale == 0) config_.scale = 1 / std::sqrt(static_cast<double>(config.head_dim));
}

LayerCache Attention::make_cache(int64_t capacity, const at::TensorOptions& options) const {
  const std::vector<int64_t> shape{capacity, config_.num_key_value_heads, config_.head_dim};
  LayerCache cache{.rows = {at::zeros(shape, options), at::zeros(shape, options)}};
  if (indexer_) indexer_->add_cache(cache, capacity, options);
  return cache;
}

kernels::KeyValuePages Attention::make_pages(int64_t pages, int64_t page_size, const at::TensorOptions& options) const {
  if (indexer_) return {};
  return kernels::make_pages(pages, config_.num_key_value_heads, config_.head_dim, page_size, options);
}

// Attention over the keys that the indexer chooses, or over all of them while it learns; the layer's own RoPE serves
// both.
at::Tensor Attention::indexed(const at::Tensor& x, at::Tensor q, at::Tensor k, const at::Tensor& v,
                              const Rotation& rotation, const kernels::AttentionOptions& options,
                              const Pass& pass) const {
  const at::AutoGradMode grad_mode(at::GradMode::is_enabled() && !pass.cache);
  q = rotated(q, 0, rotation, pass), k = rotated(k, 0, rotation, pass);
  IndexSet set = indexer_->choose(x, x, rotation, pass);
  if (pass.capture && pass.capture->wants_attention()) pass.capture->attention(block_, q, k, set.selected, options);
  if (pass.cache) {
    const at::Tensor &keys = pass.cache->layers[block_].rows[0], &values = pass.cache->layers[block_].rows[1];
    append_rows(keys, *pass.cache, k);
    append_rows(values, *pass.cache, v);
    return attend_rows(q, keys, values, set.selected, pass.cache->length + x.size(0), options, pass);
  }
  const Attended attended = set.selected.defined() ? attend_selected(q, k, v, set.selected, options, pass)
                                                   : attend(q, k, v, options, pass, set.wants_attention);
  indexer_->learn(set, {q, k, attended.lse, options.scale}, options, pass);
  return attended.out;
}

at::Tensor Attention::forward(const at::Tensor& x, const Pass& pass) const {
  const int64_t N = x.size(0), H = config_.num_attention_heads, K = config_.num_key_value_heads, D = config_.head_dim;
  const at::Tensor qkv = qkv_proj_.forward(x, pass);  // [N, (H + 2K) D]

  auto core = c10::make_intrusive<Core>();
  core->heads = H, core->kv_heads = K, core->head_dim = D;
  core->gated = config_.output_gate;
  core->qk_norm = config_.qk_norm, core->eps = config_.norm.eps, core->offset = config_.norm.offset;
  core->positions = pass.positions;
  if (rope_) {
    core->interleaved = rope_->config().interleaved;
    const int64_t reach = pass.paged ? pass.paged->capacity : pass.cache ? pass.cache->capacity : pass.length;
    std::tie(core->cos, core->sin) = rope_->get(reach, x.device());
  }
  core->options.batch = pass.batch;
  core->options.scale = config_.scale;
  core->options.window = config_.sliding_window;
  core->options.softcap = config_.softcap;
  core->options.segments = pass.segments;
  core->options.dropout = pass.dropout;
  core->options.dropout_key = pass.dropout_key(block_ * 4 + 1);
  const kernels::Way way = pass.way(qkv);
  const bool fast = way == kernels::Way::cpu;
  core->options.sinks = fast && sinks_.defined() ? sinks_.detach() : sinks_;

  // Views of the product, or normalised copies.
  const auto normed = [&] {
    auto parts = core->split(qkv);
    if (q_norm_.present()) {
      const auto rows = core->norm_rows(qkv);
      parts[0] = q_norm_.forward(rows[0], pass).view({N, H, D});
      parts[1] = k_norm_.forward(rows[1], pass).view({N, K, D});
    }
    return parts;
  };
  if (indexer_ && pass.indexer.mode != IndexerPass::Mode::dense) {
    const auto [q, k, v] = normed();
    const Rotation rotation{pass.positions, core->cos, core->sin, core->interleaved};
    return o_proj_.forward(indexed(x, q, k, v, rotation, core->options, pass), pass);
  }
  if (pass.capture && pass.capture->wants_attention()) {
    auto [q, k, v] = normed();
    if (core->cos.defined()) {
      q = kernels::ref::rope(q, pass.positions, core->cos, core->sin, core->interleaved);
      k = kernels::ref::rope(k, pass.positions, core->cos, core->sin, core->interleaved);
    }
    pass.capture->attention(block_, q, k, {}, core->options);
  }
  if (fast && !pass.cache && !pass.paged && !pass.seams->exchanges_attention()) {
    return o_proj_.forward(
        FusedFunction::apply(qkv, optional(q_norm_.weight), optional(k_norm_.weight), optional(sinks_), core), pass);
  }
  auto [q, k, v] = normed();
  pass.seams->attention_input(q, k, v);
  at::Tensor out;  // [N, H D]
  if (pass.paged) {
    out = attend_paged(*core, *pass.paged, block_, q, k, v, way, pass.products);
  } else if (pass.cache) {
    out = attend_cached(*core, *pass.cache, block_, q, k, v, fast);
  } else if (fast) {
    out = SplitFunction::apply(q, k, v, optional(sinks_), core);
  } else {
    if (core->cos.defined() && way == kernels::Way::device && !pass.aten && kernels::cuda::available(qkv)) {
      q = RopeFunction::apply(q, core);
      k = RopeFunction::apply(k, core);
    } else if (core->cos.defined()) {
      q = kernels::ref::rope(q, pass.positions, core->cos, core->sin, core->interleaved);
      k = kernels::ref::rope(k, pass.positions, core->cos, core->sin, core->interleaved);
    }
    out = way == kernels::Way::device ? kernels::aten::attention(q, k, v, core->options, pass.products)
                                      : kernels::ref::attention(q, k, v, core->options);
  }
  out = pass.seams->attention_output(out);
  if (core->gated) {
    const bool kernel = fast || (way == kernels::Way::device && !pass.aten && kernels::cuda::available(qkv) &&
                                 out.scalar_type() == qkv.scalar_type());
    out = kernel ? GateFunction::apply(out.contiguous(), qkv, core)
                 : kernels::ref::sigmoid_gate(core->by_head(out), core->gates(qkv)).reshape(out.sizes());
  }
  return o_proj_.forward(out, pass);
}

}  // namespace cairn::models
