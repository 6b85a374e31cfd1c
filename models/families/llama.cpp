// Llama (Touvron et al. 2023; Dubey et al. 2024).
#include "models/families/families.h"

namespace cairn::models {
namespace {

DecoderConfig from_config(ConfigReader& reader) {
  DecoderConfig config = gated_decoder(reader, {.vocab_size = 32000,
                                                .hidden_size = 4096,
                                                .intermediate_size = 11008,
                                                .num_hidden_layers = 32,
                                                .num_attention_heads = 32,
                                                .heads_divide = true});
  const bool attention_bias = reader.boolean("attention_bias", false), mlp_bias = reader.boolean("mlp_bias", false);
  const RopeConfig rope = reader.rope(config.blocks[0].attention.head_dim);
  for (BlockConfig& block : config.blocks) {
    block.attention.qkv_bias = block.attention.out_bias = attention_bias;
    block.attention.rope = rope;
    block.feed_forward.bias = mlp_bias;
  }
  return config;
}

}  // namespace

const Family llama_family{"llama", "LlamaForCausalLM", "model.", from_config, same_name, nullptr};

}  // namespace cairn::models
