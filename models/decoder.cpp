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

using torch::autograd::variable_list;

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

Pass uploaded(const Pass& pass, at::Device device) {
  Pass there = pass;
  there.positions = kernels::aten::upload(pass.positions, device);
  there.segments = kernels::aten::upload(pass.segments, device);
  return there;
}

}  // namespace

Decoder::Decoder(DecoderConfig config, at::ScalarType dtype, at::Device device) : config_(std::move(config)) {
  const int64_t V = config_.vocab_size, C = config_.hidden_size;
  embed_tokens_ = parameters_.add("model.embed_tokens.weight", {V, C}, Role::embedding, Init::normal(config_.init_std));
  if (config_.learned_positions) {
    embed_positions_ = parameters_.add("model.embed_positions.weight", {config_.max_position_embeddings, C},
                                       Role::embedding, Init::normal(config_.init_std));
  }
  std::vector<std::shared_ptr<RopeTable>> tables;  // blocks of equal rope share one
  const auto rope_of = [&](const BlockConfig& block) -> std::shared_ptr<RopeTable> {
    const auto& wanted = block.mla ? std::optional(block.mla->rope) : block.attention.rope;
    if (!wanted) return nullptr;
    for (const auto& table : tables) {
      if (table->config() == *wanted) return table;
    }
    return tables.emplace_back(std::make_shared<RopeTable>(*wanted));
  };
  for (size_t i = 0; i < config_.blocks.size(); ++i)
    blocks_.emplace_back(parameters_, config_.block_name(i), config_, i, rope_of(config_.blocks[i]));
  norm_ = Norm(parameters_, "model.norm", C, config_.norm);
  head_ = config_.tie_word_embeddings
              ? embed_tokens_
              : parameters_.add("lm_head.weight", {V, C}, Role::head, Init::normal(config_.init_std));
  if (config_.head_bias) head_bias_ = parameters_.add("lm_head.bias", {V}, Role::bias, Init::constant(0));
  for (size_t m = 0; m < config_.mtp.size(); ++m) mtp_.emplace_back(parameters_, config_, m, rope_of(config_.mtp[m]));
  parameters_.flatten(dtype, device);
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
    return hidden(kernels::aten::upload(ids, device), uploaded(pass, device));
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
  for (size_t i = 0; i < blocks_.size(); ++i) stream = blocks_[i].run(stream, pass, i, checkpointing_);
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

Decoder::Prediction Decoder::predict(const at::Tensor& hidden, const at::Tensor& targets, const Pass& pass,
                                     const kernels::CrossEntropyOptions& options, bool gradients) const {
  const bool through = gradients && hidden.requires_grad();    // false: everything below the head is frozen
  const bool rounded = pass.products != hidden.scalar_type();  // bf16-mixed: the head's operands too
  auto gradient_of = [&](const at::Tensor& t) {
    return gradients && t.defined() && t.requires_grad() ? t.grad() : at::Tensor();
  };
  const kernels::Way way = pass.way(hidden);
  if (way == kernels::Way::device) {
    auto operand = [&](const at::Tensor& t) { return t.defined() ? t.detach().to(pass.products) : t; };
    auto out = kernels::aten::linear_cross_entropy(operand(hidden), operand(head_), operand(head_bias_), targets,
                                                   options, gradients, gradient_of(head_), gradient_of(head_bias_));
    Prediction made{.row_nll = out.row_nll, .sums = out.sums};
    if (through) made.root = hidden, made.gradient = out.dhidden.to(hidden.scalar_type());
    return made;
  }
  if (way == kernels::Way::twins) {
    auto operand = [&](const at::Tensor& t) { return t.defined() ? t.to(pass.products) : t; };
    const auto out =
        kernels::ref::linear_cross_entropy(operand(hidden), operand(head_), operand(head_bias_), targets, options);
    Prediction made{.sum = {out.nll, out.z, out.correct}, .row_nll = out.row_nll};
    if (gradients && out.loss.requires_grad()) made.root = out.loss, made.gradient = at::ones_like(out.loss);
    return made;
  }
  auto operand = [&](const at::Tensor& t) {
    if (!t.defined()) return t;
    return rounded ? t.detach().to(pass.products).to(at::kFloat) : t.detach();
  };
  const auto out = kernels::linear_cross_entropy(operand(hidden), operand(head_), operand(head_bias_), targets, options,
                                                 gradients, gradient_of(head_), gradient_of(head_bias_));
  Prediction made{.sum = {out.nll, out.z, out.correct}, .row_nll = out.row_nll};
  if (through) made.root = hidden, made.gradient = out.dhidden;
  return made;
}

Loss Decoder::loss(const at::Tensor& ids, const at::Tensor& targets, const Pass& pass, double scale, double z_loss,
                   bool gradients, const std::vector<double>& mtp_scales) const {
  if (!mtp_scales.empty() && mtp_scales.size() != mtp_.size()) {
    throw std::invalid_argument(
        fmt::format("loss: {} scales for {} modules that predict further tokens", mtp_scales.size(), mtp_.size()));
  }
  at::AutoGradMode grad_mode(gradients);
  kernels::CrossEntropyOptions options{.scale = scale, .softcap = config_.logit_softcap, .z_loss = z_loss};
  const at::Tensor hidden = this->hidden(ids, pass);
  std::vector<Prediction> made{predict(hidden, targets, pass, options, gradients)};
  at::Tensor further = hidden;
  for (size_t m = 0; m < mtp_scales.size(); ++m) {
    const MtpRows rows = mtp_rows(ids, targets, pass.segments, pass.batch, m);
    further = mtp_hidden(m, further, rows.ids, pass);
    options.scale = mtp_scales[m], options.z_loss = 0;
    made.push_back(predict(further, rows.targets, pass, options, gradients));
  }
  // One backward pass from all heads: each block of the trunk is met once.
  variable_list roots, root_gradients;
  for (const Prediction& p : made) {
    if (p.root.defined()) roots.push_back(p.root), root_gradients.push_back(p.gradient);
  }
  if (!roots.empty()) {
    torch::autograd::backward(roots, root_gradients);
    pass.seams->after_backward(-1);
  }

  Loss loss{.row_nll = made[0].row_nll};
  if (made[0].sums.defined()) {
    std::vector<at::Tensor> sums;
    for (const Prediction& p : made) sums.push_back(p.sums);
    loss.sums = at::cat(sums);
    if (pass.keep_sums) return loss;
    const at::Tensor host = loss.sums.cpu();
    const double* sum = host.const_data_ptr<double>();
    for (size_t i = 0; i < made.size(); ++i, sum += 3) made[i].sum = {sum[0], sum[1], static_cast<int64_t>(sum[2])};
    loss.sums = at::Tensor();
  }
  loss.nll = made[0].sum.nll, loss.z = made[0].sum.z, loss.correct = made[0].sum.correct;
  for (size_t i = 1; i < made.size(); ++i) loss.mtp.push_back(made[i].sum);
  return loss;
}

at::Tensor Decoder::mtp_hidden(int64_t module, const at::Tensor& hidden, const at::Tensor& ids,
                               const Pass& pass) const {
  if (const at::Device device = embed_tokens_.device(); ids.is_cpu() && !device.is_cpu()) {
    check_ids(ids, config_.vocab_size);
    return mtp_hidden(module, hidden, kernels::aten::upload(ids, device), uploaded(pass, device));
  }
  const Seams& seams = *pass.seams;
  const at::Tensor embedded =
      seams.embedding_output(embed(embed_tokens_, seams.embedding_ids(ids), config_.embedding_scale, pass));  // [N, C]
  const at::Tensor x = mtp_.at(module).forward(embedded, hidden, pass, checkpointing_);
  if (pass.cache) pass.cache->length += pass.rows();
  return x;
}

SequenceCache Decoder::make_cache(int64_t capacity) const {
  SequenceCache cache;
  cache.capacity = capacity;
  for (const Block& block : blocks_)
    cache.layers.push_back(block.mixer().make_cache(capacity, parameters_.flat().options()));
  return cache;
}

SequenceCache Decoder::make_mtp_cache(int64_t module, int64_t capacity) const {
  SequenceCache cache;
  cache.capacity = capacity;
  cache.layers.resize(blocks_.size() + mtp_.size());  // the mixers find theirs by the number of their block
  cache.layers.at(blocks_.size() + module) = mtp_.at(module).mixer().make_cache(capacity, parameters_.flat().options());
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

}  // namespace cairn::models
