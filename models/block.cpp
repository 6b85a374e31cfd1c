#include "models/block.h"

#include "models/layers/capture.h"
#include "models/layers/embedding.h"

namespace cairn::models {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

// Runs backward from `outputs` given their gradients; undefined gradients are left out.
void backward(const variable_list& outputs, const variable_list& grads) {
  variable_list roots, root_grads;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!outputs[i].defined() || !grads[i].defined()) continue;
    roots.push_back(outputs[i]);
    root_grads.push_back(grads[i]);
  }
  torch::autograd::backward(roots, root_grads);
}

// Activation checkpointing (Chen et al. 2016): the forward pass keeps only the block's input; the backward pass runs
// the block again. Dropout masks are functions of their key, so the second run is the first.
struct CheckpointFunction : torch::autograd::Function<CheckpointFunction> {
  using Run = std::function<Block::Stream(const Block::Stream&)>;
  struct Held : torch::CustomClassHolder {
    explicit Held(Run run) : run(std::move(run)) {}
    Run run;
  };
  static variable_list forward(AutogradContext* ctx, const Variable& x, const std::optional<Variable>& given_pending,
                               Run run) {
    const at::Tensor pending = given_pending.value_or(at::Tensor());
    ctx->save_for_backward({x, pending});
    const Block::Stream out = run({x, pending});
    ctx->saved_data["run"] = c10::IValue::make_capsule(c10::make_intrusive<Held>(std::move(run)));
    ctx->set_materialize_grads(false);
    if (out.pending.defined()) return {out.x, out.pending};
    return {out.x};
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    auto leaf = [](const at::Tensor& t) { return t.defined() ? t.detach().requires_grad_(true) : t; };
    const Block::Stream in{leaf(saved[0]), leaf(saved[1])};
    const auto held = c10::static_intrusive_pointer_cast<Held>(ctx->saved_data["run"].toCapsule());
    {
      at::AutoGradMode grad_mode(true);
      const Block::Stream out = held->run(in);
      models::backward({out.x, out.pending}, {grads[0], grads.size() > 1 ? grads[1] : at::Tensor()});
    }
    return {in.x.grad(), in.pending.defined() ? in.pending.grad() : at::Tensor(), at::Tensor()};
  }
};

// Tells the seams when the backward pass enters and leaves a block.
struct BoundaryFunction : torch::autograd::Function<BoundaryFunction> {
  static Variable forward(AutogradContext* ctx, const Variable& x, int64_t seams, int64_t block,
                          bool entering_backward) {
    ctx->saved_data["seams"] = seams;
    ctx->saved_data["block"] = block;
    ctx->saved_data["entering"] = entering_backward;
    return x.view_as(x);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto* seams = reinterpret_cast<const Seams*>(ctx->saved_data["seams"].toInt());
    const int64_t block = ctx->saved_data["block"].toInt();
    ctx->saved_data["entering"].toBool() ? seams->before_backward(block) : seams->after_backward(block);
    return {grads[0], at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor boundary(const at::Tensor& x, const Pass& pass, int64_t place, bool entering_backward) {
  if (pass.seams == &Seams::none() || !x.requires_grad()) return x;
  return BoundaryFunction::apply(x, reinterpret_cast<int64_t>(pass.seams), place, entering_backward);
}

Block::Block(Parameters& parameters, const std::string& name, const DecoderConfig& config, int64_t index,
             std::shared_ptr<RopeTable> rope)
    : index_(index), parallel_(config.block(index).parallel) {
  const BlockConfig& block = config.block(index);
  const int64_t C = config.hidden_size;
  auto norm = [&](const std::string& site) {
    return site.empty() ? Norm() : Norm(parameters, name + "." + site, C, config.norm);
  };
  pre_mixer_ = norm(block.norms.pre_mixer);
  if (block.delta_net) {
    mixer_ = std::make_unique<GatedDeltaNet>(parameters, name + ".linear_attn", C, *block.delta_net, index);
  } else if (block.mla) {
    mixer_ =
        std::make_unique<Mla>(parameters, name + ".self_attn", C, *block.mla, block.indexer, index, std::move(rope));
  } else {
    mixer_ = std::make_unique<Attention>(parameters, name + ".self_attn", C, block.attention, block.indexer, index,
                                         std::move(rope));
  }
  post_mixer_ = norm(block.norms.post_mixer);
  pre_feed_forward_ = norm(block.norms.pre_feed_forward);
  if (block.experts)
    feed_forward_ = std::make_unique<Experts>(parameters, name + ".mlp", C, *block.experts, index);
  else
    feed_forward_ = std::make_unique<FeedForward>(parameters, name + ".mlp", C, block.feed_forward);
  post_feed_forward_ = norm(block.norms.post_feed_forward);
}

at::Tensor Block::dropped(const at::Tensor& x, int64_t place, const Pass& pass) const {
  return dropout(x, index_ * 4 + place, pass);
}

Block::Stream Block::forward(const Stream& in, const Pass& pass) const {
  // x: the stream; a: the mixer's input. A pending addition is made by the norm that comes next, or here.
  auto enter = [&](const Norm& norm, const Stream& stream) -> std::pair<at::Tensor, at::Tensor> {
    if (norm.present() && stream.pending.defined()) return norm.add(stream.x, stream.pending, pass);
    const at::Tensor x = stream.pending.defined() ? stream.x + stream.pending : stream.x;
    return {x, norm.present() ? norm.forward(x, pass) : x};
  };
  auto leave = [&](const Norm& norm, const at::Tensor& y, int64_t place) {
    return dropped(norm.present() ? norm.forward(y, pass) : y, place, pass);
  };

  auto [x, a] = enter(pre_mixer_, in);
  const at::Tensor mixed = leave(post_mixer_, mixer_->forward(a, pass), 2);
  if (parallel_) {
    const at::Tensor f = pre_feed_forward_.present() ? pre_feed_forward_.forward(x, pass) : a;
    return {x + mixed, leave(post_feed_forward_, feed_forward_->forward(f, pass), 3)};
  }
  auto [y, f] = enter(pre_feed_forward_, {x, mixed});
  return {y, leave(post_feed_forward_, feed_forward_->forward(f, pass), 3)};
}

Block::Stream Block::run(const Stream& in, const Pass& pass, int64_t place, bool checkpointing) const {
  pass.seams->before_forward(place);
  Stream stream{boundary(in.x, pass, place, false), in.pending};
  // Below the first weight that trains there is no backward pass to run a block again.
  const bool differentiated = stream.x.requires_grad() || (stream.pending.defined() && stream.pending.requires_grad());
  if (checkpointing && differentiated && at::GradMode::is_enabled() && !pass.cache) {
    const auto out = CheckpointFunction::apply(
        stream.x, stream.pending.defined() ? std::optional<at::Tensor>(stream.pending) : std::nullopt,
        [this, pass](const Stream& s) {
          if (at::GradMode::is_enabled()) return forward(s, pass);
          Pass first = pass;  // the backward pass runs the block again: that run counts
          first.measured = nullptr;
          first.indexer.train = false;
          return forward(s, first);
        });
    stream = {out[0], out.size() > 1 ? out[1] : at::Tensor()};
  } else {
    stream = forward(stream, pass);
  }
  if (pass.capture) pass.capture->stream(index_, stream.pending.defined() ? stream.x + stream.pending : stream.x);
  stream.x = boundary(stream.x, pass, place, true);
  pass.seams->after_forward(place);
  return stream;
}

}  // namespace cairn::models
