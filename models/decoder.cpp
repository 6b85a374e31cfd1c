#include "models/decoder.h"

#include "models/kernels/aten/cross_entropy.h"
#include "models/kernels/aten/upload.h"
#include "models/kernels/available.h"
#include "models/kernels/linear.h"
#include "models/kernels/ref/cross_entropy.h"
#include "models/kernels/ref/linear.h"
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

at::Tensor boundary(const at::Tensor& x, const Pass& pass, int64_t block, bool entering_backward) {
  if (pass.seams == &Seams::none() || !x.requires_grad()) return x;
  return BoundaryFunction::apply(x, reinterpret_cast<int64_t>(pass.seams), block, entering_backward);
}

// A GPU would not say which one.
void check_ids(const at::Tensor& ids, int64_t vocabulary) {
  const at::Tensor plain = ids.contiguous();
  const int32_t* id = plain.const_data_ptr<int32_t>();
  for (int64_t n = 0; n < plain.numel(); ++n) {
    if (id[n] < 0 || id[n] >= vocabulary)
      throw std::invalid_argument(
          fmt::format("[embedding] ids[{}] is {}, outside the vocabulary of {}", n, id[n], vocabulary));
  }
}

}  // namespace

Block::Block(Parameters& parameters, const std::string& name, const DecoderConfig& config, int64_t index,
             std::shared_ptr<RopeTable> rope)
    : index_(index), parallel_(config.blocks[index].parallel) {
  const BlockConfig& block = config.blocks[index];
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

Decoder::Decoder(DecoderConfig config, at::ScalarType dtype, at::Device device) : config_(std::move(config)) {
  const int64_t V = config_.vocab_size, C = config_.hidden_size;
  embed_tokens_ = parameters_.add("model.embed_tokens.weight", {V, C}, Role::embedding, Init::normal(config_.init_std));
  if (config_.learned_positions) {
    embed_positions_ = parameters_.add("model.embed_positions.weight", {config_.max_position_embeddings, C},
                                       Role::embedding, Init::normal(config_.init_std));
  }
  std::vector<std::shared_ptr<RopeTable>> tables;  // blocks of equal rope share one
  for (size_t i = 0; i < config_.blocks.size(); ++i) {
    std::shared_ptr<RopeTable> rope;
    const BlockConfig& block = config_.blocks[i];
    if (const auto& wanted = block.mla ? std::optional(block.mla->rope) : block.attention.rope) {
      for (const auto& table : tables) {
        if (table->config() == *wanted) rope = table;
      }
      if (!rope) tables.push_back(rope = std::make_shared<RopeTable>(*wanted));
    }
    blocks_.emplace_back(parameters_, fmt::format("model.layers.{}", i), config_, i, rope);
  }
  norm_ = Norm(parameters_, "model.norm", C, config_.norm);
  head_ = config_.tie_word_embeddings
              ? embed_tokens_
              : parameters_.add("lm_head.weight", {V, C}, Role::head, Init::normal(config_.init_std));
  if (config_.head_bias) head_bias_ = parameters_.add("lm_head.bias", {V}, Role::bias, Init::constant(0));
  parameters_.flatten(dtype, device);
}

Block::Stream Decoder::run_block(size_t index, const Block::Stream& in, const Pass& pass) const {
  const int64_t block = index;
  pass.seams->before_forward(block);
  Block::Stream stream{boundary(in.x, pass, block, false), in.pending};
  // Below the first weight that trains there is no backward pass to run a block again.
  const bool differentiated = stream.x.requires_grad() || (stream.pending.defined() && stream.pending.requires_grad());
  if (checkpointing_ && differentiated && at::GradMode::is_enabled() && !pass.cache) {
    const auto out = CheckpointFunction::apply(
        stream.x, stream.pending.defined() ? std::optional<at::Tensor>(stream.pending) : std::nullopt,
        [this, index, pass](const Block::Stream& s) {
          if (at::GradMode::is_enabled()) return blocks_[index].forward(s, pass);
          Pass first = pass;  // the backward pass runs the block again: that run counts
          first.measured = nullptr;
          first.indexer.train = false;
          return blocks_[index].forward(s, first);
        });
    stream = {out[0], out.size() > 1 ? out[1] : at::Tensor()};
  } else {
    stream = blocks_[index].forward(stream, pass);
  }
  if (pass.capture) pass.capture->stream(block, stream.pending.defined() ? stream.x + stream.pending : stream.x);
  stream.x = boundary(stream.x, pass, block, true);
  pass.seams->after_forward(block);
  return stream;
}

at::Tensor Decoder::hidden(const at::Tensor& ids, const Pass& pass) const {
  const auto shares = [](const BlockConfig& block) { return block.indexer && block.indexer->users > 1; };
  if (!pass.index_share && std::any_of(config_.blocks.begin(), config_.blocks.end(), shares)) {
    Pass sharing = pass;
    sharing.index_share = std::make_shared<IndexShare>();
    return hidden(ids, sharing);
  }
  if (pass.paged && !pageable())
    throw std::invalid_argument(
        fmt::format("{}: not every block of this model can keep what it remembers in pages", config_.model_type));
  // Inputs may lie on the CPU whatever the model's device: they go there without waiting for it.
  if (const at::Device device = embed_tokens_.device(); ids.is_cpu() && !device.is_cpu()) {
    check_ids(ids, config_.vocab_size);
    Pass there = pass;
    there.positions = kernels::aten::upload(pass.positions, device);
    there.segments = kernels::aten::upload(pass.segments, device);
    return hidden(kernels::aten::upload(ids, device), there);
  }
  const Seams& seams = *pass.seams;
  seams.before_forward(-1);
  at::Tensor x =
      seams.embedding_output(embed(embed_tokens_, seams.embedding_ids(ids), config_.embedding_scale, pass));  // [N, C]
  if (embed_positions_.defined()) x = x + embed(embed_positions_, pass.positions, 1, pass);
  // The residual stream of bf16-mixed is float32; that of bf16 is bfloat16.
  x = dropout(x, -1, pass);
  if (pass.capture) pass.capture->stream(-1, x);
  x = boundary(x, pass, -1, true);
  seams.after_forward(-1);

  Block::Stream stream{x, at::Tensor()};
  for (size_t i = 0; i < blocks_.size(); ++i) stream = run_block(i, stream, pass);
  if (pass.cache) pass.cache->length += pass.rows();
  const int64_t last = blocks_.size();
  seams.before_forward(last);
  stream.x = boundary(stream.x, pass, last, false);
  x = stream.pending.defined() ? norm_.add(stream.x, stream.pending, pass).second : norm_.forward(stream.x, pass);
  x = boundary(x, pass, last, true);
  seams.after_forward(last);
  return x;
}

at::Tensor Decoder::logits(const at::Tensor& hidden, const Pass& pass) const {
  at::NoGradGuard no_grad;
  const at::ScalarType products = pass.products;
  const bool fast = pass.way(hidden) == kernels::Way::cpu && products == at::kFloat;
  at::Tensor logits = fast ? kernels::linear_forward(hidden, head_, head_bias_)
                           : kernels::ref::linear(hidden.to(products), head_.to(products),
                                                  head_bias_.defined() ? head_bias_.to(products) : head_bias_)
                                 .to(at::kFloat);
  if (config_.logit_softcap > 0) logits = at::tanh(logits / config_.logit_softcap) * config_.logit_softcap;
  return logits;
}

Loss Decoder::loss(const at::Tensor& ids, const at::Tensor& targets, const Pass& pass, double scale, double z_loss,
                   bool gradients) const {
  at::AutoGradMode grad_mode(gradients);
  const kernels::CrossEntropyOptions options{.scale = scale, .softcap = config_.logit_softcap, .z_loss = z_loss};
  const at::Tensor hidden = this->hidden(ids, pass);
  const bool through = gradients && hidden.requires_grad();    // false: everything below the head is frozen
  const bool rounded = pass.products != hidden.scalar_type();  // bf16-mixed: the head's operands too
  auto gradient_of = [&](const at::Tensor& t) {
    return gradients && t.defined() && t.requires_grad() ? t.grad() : at::Tensor();
  };
  const kernels::Way way = pass.way(hidden);
  if (way == kernels::Way::device) {
    auto operand = [&](const at::Tensor& t) { return t.defined() ? t.detach().to(pass.products) : t; };
    const auto out =
        kernels::aten::linear_cross_entropy(operand(hidden), operand(head_), operand(head_bias_), targets, options,
                                            gradients, gradient_of(head_), gradient_of(head_bias_));
    if (through) torch::autograd::backward({hidden}, {out.dhidden.to(hidden.scalar_type())});
    if (through) pass.seams->after_backward(-1);
    if (pass.keep_sums) return {.row_nll = out.row_nll, .sums = out.sums};
    const at::Tensor sums = out.sums.cpu();
    const double* sum = sums.const_data_ptr<double>();
    return {sum[0], sum[1], static_cast<int64_t>(sum[2]), out.row_nll};
  }
  if (way == kernels::Way::twins) {
    auto operand = [&](const at::Tensor& t) { return t.defined() ? t.to(pass.products) : t; };
    const auto out =
        kernels::ref::linear_cross_entropy(operand(hidden), operand(head_), operand(head_bias_), targets, options);
    if (gradients && out.loss.requires_grad()) {
      torch::autograd::backward({out.loss}, {});
      pass.seams->after_backward(-1);
    }
    return {out.nll, out.z, out.correct, out.row_nll};
  }
  auto operand = [&](const at::Tensor& t) {
    if (!t.defined()) return t;
    return rounded ? t.detach().to(pass.products).to(at::kFloat) : t.detach();
  };
  const auto out = kernels::linear_cross_entropy(operand(hidden), operand(head_), operand(head_bias_), targets, options,
                                                 gradients, gradient_of(head_), gradient_of(head_bias_));
  if (through) torch::autograd::backward({hidden}, {out.dhidden});
  if (through) pass.seams->after_backward(-1);
  return {out.nll, out.z, out.correct, out.row_nll};
}

SequenceCache Decoder::make_cache(int64_t capacity) const {
  SequenceCache cache;
  cache.capacity = capacity;
  for (const Block& block : blocks_)
    cache.layers.push_back(block.mixer().make_cache(capacity, parameters_.flat().options()));
  return cache;
}

std::vector<kernels::KeyValuePages> Decoder::make_pages(int64_t pages, int64_t page_size) const {
  std::vector<kernels::KeyValuePages> layers;
  for (const Block& block : blocks_)
    layers.push_back(block.mixer().make_pages(pages, page_size, parameters_.flat().options()));
  return layers;
}

bool Decoder::pageable() const {
  const auto pages = make_pages(0, 16);
  return std::all_of(pages.begin(), pages.end(), [](const auto& layer) { return layer.keys.defined(); });
}

at::Tensor Decoder::log_probabilities(const at::Tensor& hidden, const at::Tensor& targets, const Pass& pass,
                                      double temperature) const {
  at::NoGradGuard no_grad;
  if (temperature != 1 && config_.logit_softcap > 0)
    throw std::invalid_argument(fmt::format(
        "log-probabilities as the loss computes them: found a temperature of {} with capped logits, expected 1",
        temperature));
  const kernels::CrossEntropyOptions options{.softcap = config_.logit_softcap, .logit_scale = 1 / temperature};
  const auto operand = [&](const at::Tensor& t) { return t.defined() ? t.detach().to(pass.products) : t; };
  const auto rounded = [&](const at::Tensor& t) { return t.defined() ? operand(t).to(at::kFloat) : t; };
  at::Tensor nll;
  switch (pass.way(hidden)) {
    case kernels::Way::cpu:
      nll = kernels::linear_cross_entropy(rounded(hidden).contiguous(), rounded(head_), rounded(head_bias_), targets,
                                          options, false, {}, {})
                .row_nll;
      break;
    case kernels::Way::device:
      nll = kernels::aten::linear_cross_entropy(operand(hidden), operand(head_), operand(head_bias_), targets, options,
                                                false, {}, {})
                .row_nll;
      break;
    case kernels::Way::twins:
      nll = kernels::ref::linear_cross_entropy(operand(hidden), operand(head_), operand(head_bias_), targets, options)
                .row_nll;
  }
  return nll.neg();
}

}  // namespace cairn::models
