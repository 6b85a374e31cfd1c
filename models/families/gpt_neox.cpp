// GPT-NeoX (Black et al. 2022), the family of Pythia (Biderman et al. 2023): attention and feed-forward side by side,
// RoPE on a part of each head; q, k and v lie interleaved head by head on disk.
#include "models/families/families.h"

namespace cairn::models {
namespace {

DecoderConfig from_config(ConfigReader& reader) {
  DecoderConfig config;
  config.vocab_size = reader.integer("vocab_size", 50432);
  config.hidden_size = reader.integer("hidden_size", 6144);
  config.max_position_embeddings = reader.integer("max_position_embeddings", 2048);
  config.tie_word_embeddings = reader.boolean("tie_word_embeddings", false);
  config.init_std = reader.positive("initializer_range", 0.02);
  config.norm = {.kind = NormConfig::Kind::layer, .eps = reader.positive("layer_norm_eps", 1e-5), .bias = true};
  const int64_t heads = reader.integer("num_attention_heads", 64);
  const int64_t head_dim = head_width(config.hidden_size, heads);
  const bool attention_bias = reader.boolean("attention_bias", true);

  BlockConfig block;
  block.norms = {.pre_mixer = "input_layernorm", .pre_feed_forward = "post_attention_layernorm"};
  block.parallel = reader.boolean("use_parallel_residual", true);
  block.attention = {
      .num_attention_heads = heads,
      .num_key_value_heads = heads,
      .head_dim = head_dim,
      .qkv_bias = attention_bias,
      .out_bias = attention_bias,
      .rope =
          reader.rope(head_dim, {.theta_key = "rotary_emb_base", .partial_key = "rotary_pct", .default_partial = 0.25}),
      .init_std = config.init_std,
      .out_init_std = config.init_std};
  block.feed_forward = {.intermediate_size = reader.integer("intermediate_size", 24576),
                        .activation = activation(reader, "hidden_act", "gelu"),
                        .gated = false,
                        .bias = true,
                        .init_std = config.init_std,
                        .out_init_std = config.init_std};
  config.blocks.assign(reader.integer("num_hidden_layers", 44), block);
  reader.dropout_rates({"attention_dropout", "hidden_dropout"});
  reader.ignore({"classifier_dropout"});
  return config;
}

std::string rename(const std::string& parameter) {
  return replaced(parameter, {{"model.layers.", "gpt_neox.layers."},
                              {"model.embed_tokens", "gpt_neox.embed_in"},
                              {"model.norm", "gpt_neox.final_layer_norm"},
                              {"lm_head", "embed_out"},
                              {"self_attn.q_proj", "attention.query_key_value"},
                              {"self_attn.k_proj", "attention.query_key_value"},
                              {"self_attn.v_proj", "attention.query_key_value"},
                              {"self_attn.o_proj", "attention.dense"},
                              {"mlp.up_proj", "mlp.dense_h_to_4h"},
                              {"mlp.down_proj", "mlp.dense_4h_to_h"}});
}

DiskLayout layout(const std::string& name) {
  return name.find("query_key_value") != std::string::npos ? DiskLayout::neox_qkv : DiskLayout::plain;
}

std::vector<DiskTensor> disk(const DecoderConfig&, const Parameters& parameters) {
  return fused_qkv(parameters, rename, layout);
}

}  // namespace

const Family gpt_neox_family{"gpt_neox", "GPTNeoXForCausalLM", "gpt_neox.", from_config, rename, disk};

}  // namespace cairn::models
