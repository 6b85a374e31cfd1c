#include "models/layers/mla.h"

#include "models/layers/capture.h"

namespace cairn::models {
namespace {

// a [H, N, i] times b [H, i, o]; operands are rounded as those of linear layers are.
at::Tensor per_head(const at::Tensor& a, const at::Tensor& b, const Pass& pass) {
  if (const int64_t over = a.size(1) % 8; over && pass.cache && a.is_cpu()) {
    // So that a row of decoding has the same bits alone and beside others.
    return per_head(at::constant_pad_nd(a, {0, 0, 0, 8 - over}), b, pass).narrow(1, 0, a.size(1));
  }
  if (pass.products == a.scalar_type() && pass.products == b.scalar_type()) return at::bmm(a, b);
  return at::bmm(a.to(pass.products), b.to(pass.products)).to(a.scalar_type());
}

}  // namespace

Mla::Mla(Parameters& parameters, const std::string& name, int64_t hidden_size, const MlaConfig& config,
         const std::optional<IndexerConfig>& indexer, int64_t block, std::shared_ptr<RopeTable> rope)
    : config_(config), block_(block), rope_(std::move(rope)) {
  const int64_t H = config.num_attention_heads, q_width = H * config.qk_head_dim(),
                kv_width = config.kv_lora_rank + config.qk_rope_head_dim;
  const double std = config.init_std;
  std::vector<Parameters::Part> a;
  if (config.q_lora_rank) a.push_back({name + ".q_a_proj", config.q_lora_rank});
  a.push_back({name + ".kv_a_proj_with_mqa", kv_width});
  a_proj_ = Linear(parameters, a, hidden_size, {.bias = config.bias, .init_std = std});
  if (config.q_lora_rank) {
    q_norm_ = Norm(parameters, name + ".q_a_layernorm", config.q_lora_rank, config.norm);
    q_proj_ = Linear(parameters, {{name + ".q_b_proj", q_width}}, config.q_lora_rank,
                     {.init_std = std, .cut = LinearCut::column});
  } else {
    q_proj_ =
        Linear(parameters, {{name + ".q_proj", q_width}}, hidden_size, {.init_std = std, .cut = LinearCut::column});
  }
  kv_norm_ = Norm(parameters, name + ".kv_a_layernorm", config.kv_lora_rank, config.norm);
  kv_b_proj_ = Linear(parameters, {{name + ".kv_b_proj", H * (config.qk_nope_head_dim + config.v_head_dim)}},
                      config.kv_lora_rank, {.init_std = std, .cut = LinearCut::column});
  o_proj_ = Linear(parameters, {{name + ".o_proj", hidden_size}}, H * config.v_head_dim,
                   {.bias = config.bias, .init_std = config.out_init_std, .cut = LinearCut::row});
  if (indexer) {
    indexer_.emplace(parameters, name + ".indexer", hidden_size, config.q_lora_rank ? config.q_lora_rank : hidden_size,
                     *indexer, block);
  }
  if (config_.scale == 0) config_.scale = 1 / std::sqrt(static_cast<double>(config.qk_head_dim()));
}

LayerCache Mla::make_cache(int64_t capacity, const at::TensorOptions& options) const {
  LayerCache cache;
  cache.rows.push_back(at::zeros({capacity, 1, config_.kv_lora_rank + config_.qk_rope_head_dim}, options));
  if (indexer_) indexer_->add_cache(cache, capacity, options);
  return cache;
}

Mla::Latents Mla::latents(const at::Tensor& x, const Rotation& rotation, const Pass& pass) const {
  const int64_t N = x.size(0), r = config_.kv_lora_rank, R = config_.qk_rope_head_dim, rank = config_.q_lora_rank;
  const at::Tensor a = a_proj_.forward(x, pass);  // [N, (q_lora_rank) + r + R]
  const auto parts = rank ? at::split_with_sizes(a, {rank, r, R}, 1) : at::split_with_sizes(a, {r, R}, 1);
  const size_t first = rank ? 1 : 0;
  return {rank ? q_norm_.forward(parts[0], pass) : x, kv_norm_.forward(parts[first], pass),
          rotated(parts[first + 1].reshape({N, 1, R}), 0, rotation, pass)};
}

at::Tensor Mla::up(int64_t first, int64_t rows) const {
  const int64_t H = config_.num_attention_heads;
  return kv_b_proj_.weight.view({H, -1, config_.kv_lora_rank}).narrow(1, first, rows);
}

std::pair<at::Tensor, at::Tensor> Mla::expanded(const Latents& c, const Pass& pass) const {
  const int64_t N = c.kv.size(0), H = config_.num_attention_heads, R = config_.qk_rope_head_dim;
  const at::Tensor kv = kv_b_proj_.forward(c.kv, pass).view({N, H, -1});  // [N, H, nope + E]
  const auto parts = at::split_with_sizes(kv, {config_.qk_nope_head_dim, config_.v_head_dim}, 2);
  return {at::cat({parts[0], c.key.expand({N, H, R})}, 2), parts[1]};
}

at::Tensor Mla::absorbed(const at::Tensor& q, const Pass& pass) const {
  const auto parts = at::split_with_sizes(q, {config_.qk_nope_head_dim, config_.qk_rope_head_dim}, 2);
  const at::Tensor latent = per_head(parts[0].transpose(0, 1), up(0, config_.qk_nope_head_dim), pass);  // [H, N, r]
  return at::cat({latent.transpose(0, 1), parts[1]}, 2);
}

at::Tensor Mla::released(const at::Tensor& out, const Pass& pass) const {
  const int64_t N = out.size(0), H = config_.num_attention_heads, E = config_.v_head_dim;
  const at::Tensor latent = out.view({N, H, config_.kv_lora_rank}).transpose(0, 1);  // [H, N, r]
  const at::Tensor y = per_head(latent, up(config_.qk_nope_head_dim, E).transpose(1, 2), pass);
  return y.transpose(0, 1).reshape({N, H * E});
}

at::Tensor Mla::forward(const at::Tensor& x, const Pass& pass) const {
  const at::AutoGradMode grad_mode(at::GradMode::is_enabled() && !pass.cache);
  const int64_t N = x.size(0), H = config_.num_attention_heads, r = config_.kv_lora_rank;
  Rotation rotation{.positions = pass.positions, .interleaved = config_.rope.interleaved};
  std::tie(rotation.cos, rotation.sin) = rope_->get(pass.cache ? pass.cache->capacity : pass.length, x.device());

  const Latents c = latents(x, rotation, pass);
  const at::Tensor q = rotated(q_proj_.forward(c.query, pass).view({N, H, config_.qk_head_dim()}),
                               config_.qk_nope_head_dim, rotation, pass);
  kernels::AttentionOptions options{.batch = pass.batch, .scale = config_.scale, .segments = pass.segments};
  options.dropout = pass.dropout;
  options.dropout_key = pass.dropout_key(block_ * 4 + 1);
  IndexSet set;
  if (indexer_) set = indexer_->choose(x, c.query, rotation, pass);
  if (pass.capture && pass.capture->wants_attention())
    pass.capture->attention(block_, q, expanded(c, pass).first, set.selected, options);
  const auto rows = [&] {
    return at::cat({c.kv.unsqueeze(1), c.key}, 2);
  };  // the keys of the absorbed form [N, 1, r + R]

  at::Tensor out;  // [N, H E]
  if (pass.cache) {
    const at::Tensor& cached = pass.cache->layers[block_].rows[0];
    append_rows(cached, *pass.cache, rows());
    if (pass.cache->length == 0 && !set.selected.defined()) {
      const auto [k, v] = expanded(c, pass);
      out = attend(q, k, v, options, pass).out;
    } else {
      out = released(attend_rows(absorbed(q, pass), cached, cached.narrow(2, 0, r), set.selected,
                                 pass.cache->length + N, options, pass),
                     pass);
    }
  } else if (set.selected.defined()) {
    const at::Tensor q_absorbed = absorbed(q, pass), k = rows();
    const Attended attended = attend_selected(q_absorbed, k, k.narrow(2, 0, r), set.selected, options, pass);
    indexer_->learn(set, {q_absorbed, k, attended.lse, options.scale}, options, pass);
    out = released(attended.out, pass);
  } else {
    auto [k, v] = expanded(c, pass);
    at::Tensor sent = q;
    if (pass.seams->exchanges_attention()) pass.seams->attention_input(sent, k, v);
    const Attended attended = attend(sent, k, v, options, pass, set.wants_attention);
    if (indexer_) indexer_->learn(set, {sent, k, attended.lse, options.scale}, options, pass);
    out = pass.seams->exchanges_attention() ? pass.seams->attention_output(attended.out) : attended.out;
  }
  return o_proj_.forward(out, pass);
}

}  // namespace cairn::models
