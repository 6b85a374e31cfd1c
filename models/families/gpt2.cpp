// GPT-2 (Radford et al. 2019): learned positions, LayerNorm, biases everywhere; its matrices lie transposed on disk, q,
// k and v in one.
#include "models/families/families.h"

namespace cairn::models {
namespace {

DecoderConfig from_config(ConfigReader& reader) {
  DecoderConfig config;
  config.vocab_size = reader.integer("vocab_size", 50257);
  config.hidden_size = reader.integer("n_embd", 768);
  config.max_position_embeddings = reader.integer("n_positions", 1024);
  config.learned_positions = true;
  config.tie_word_embeddings = reader.boolean("tie_word_embeddings", true);
  config.init_std = reader.positive("initializer_range", 0.02);
  config.norm = {.kind = NormConfig::Kind::layer, .eps = reader.positive("layer_norm_epsilon", 1e-5), .bias = true};
  const int64_t layers = reader.integer("n_layer", 12), heads = reader.integer("n_head", 12);
  const int64_t head_dim = head_width(config.hidden_size, heads, "n_head", "n_embd");
  const bool scaled = reader.boolean("scale_attn_weights", true),
             by_layer = reader.boolean("scale_attn_by_inverse_layer_idx", false);
  // What is added to the residual stream starts smaller, since 2 * n_layer of them add up.
  const double out_std = config.init_std / std::sqrt(2.0 * static_cast<double>(layers));

  BlockConfig block;
  block.norms = {.pre_mixer = "ln_1", .pre_feed_forward = "ln_2"};
  block.attention = {.num_attention_heads = heads,
                     .num_key_value_heads = heads,
                     .head_dim = head_dim,
                     .qkv_bias = true,
                     .out_bias = true,
                     .init_std = config.init_std,
                     .out_init_std = out_std};
  block.feed_forward = {
      .intermediate_size = reader.optional_integer("n_inner", std::nullopt).value_or(4 * config.hidden_size),
      .activation = activation(reader, "activation_function", "gelu_new"),
      .gated = false,
      .bias = true,
      .init_std = config.init_std,
      .out_init_std = out_std};
  for (int64_t i = 0; i < layers; ++i) {
    block.attention.scale =
        (scaled ? 1 / std::sqrt(static_cast<double>(head_dim)) : 1.0) / (by_layer ? static_cast<double>(i + 1) : 1.0);
    config.blocks.push_back(block);
  }
  reader.dropout_rates({"attn_pdrop", "embd_pdrop", "resid_pdrop"});
  // Of numerical effect alone, and n_ctx says n_positions again.
  reader.ignore({"reorder_and_upcast_attn", "n_ctx"});
  return config;
}

std::string rename(const std::string& parameter) {
  return replaced(parameter, {{"model.layers.", "transformer.h."},
                              {"model.embed_tokens", "transformer.wte"},
                              {"model.embed_positions", "transformer.wpe"},
                              {"model.norm", "transformer.ln_f"},
                              {"self_attn.q_proj", "attn.c_attn"},
                              {"self_attn.k_proj", "attn.c_attn"},
                              {"self_attn.v_proj", "attn.c_attn"},
                              {"self_attn.o_proj", "attn.c_proj"},
                              {"mlp.up_proj", "mlp.c_fc"},
                              {"mlp.down_proj", "mlp.c_proj"}});
}

DiskLayout layout(const std::string& name) {
  return name.find(".c_") != std::string::npos && name.ends_with(".weight") ? DiskLayout::transposed
                                                                            : DiskLayout::plain;
}

std::vector<DiskTensor> disk(const DecoderConfig&, const Parameters& parameters) {
  return fused_qkv(parameters, rename, layout);
}

}  // namespace

const Family gpt2_family{"gpt2", "GPT2LMHeadModel", "transformer.", from_config, rename, disk};

}  // namespace cairn::models
