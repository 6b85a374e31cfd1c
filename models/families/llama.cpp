// Llama (Touvron et al. 2023; Dubey et al. 2024).
#include "models/families/families.h"

namespace cairn::models {
namespace {

DecoderConfig from_config(ConfigReader& reader) {
  DecoderConfig config;
  config.vocab_size = reader.integer("vocab_size", 32000);
  config.hidden_size = reader.integer("hidden_size", 4096);
  config.max_position_embeddings = reader.integer("max_position_embeddings", 2048);
  config.tie_word_embeddings = reader.boolean("tie_word_embeddings", false);
  config.init_std = reader.number("initializer_range", 0.02);
  config.norm = {.kind = NormConfig::Kind::rms, .eps = reader.number("rms_norm_eps", 1e-6)};

  BlockConfig block;
  block.norms = {.pre_mixer = "input_layernorm", .pre_feed_forward = "post_attention_layernorm"};
  AttentionConfig& attention = block.attention;
  attention.num_attention_heads = reader.integer("num_attention_heads", 32);
  attention.num_key_value_heads = reader.integer("num_key_value_heads", attention.num_attention_heads);
  attention.head_dim = reader.integer("head_dim", head_width(reader, config.hidden_size, attention.num_attention_heads));
  attention.qkv_bias = attention.out_bias = reader.boolean("attention_bias", false);
  attention.rope = reader.rope(attention.head_dim, 10000);
  attention.init_std = attention.out_init_std = config.init_std;
  block.feed_forward = {.intermediate_size = reader.integer("intermediate_size", 11008),
                        .activation = activation(reader, "hidden_act", "silu"),
                        .bias = reader.boolean("mlp_bias", false),
                        .init_std = config.init_std,
                        .out_init_std = config.init_std};
  reader.ignore({"attention_dropout"});
  config.blocks.assign(reader.integer("num_hidden_layers", 32), block);
  return config;
}

}  // namespace

const Family llama_family{"llama", "LlamaForCausalLM", from_config, same_name, nullptr};

}  // namespace cairn::models
