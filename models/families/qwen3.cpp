// Qwen3 (Yang et al. 2025): Qwen2 with RMSNorm on each head of q and k in place of the biases.
#include "models/families/families.h"

namespace cairn::models {
namespace {

DecoderConfig from_config(ConfigReader& reader) {
  DecoderConfig config = gated_decoder(reader, {.vocab_size = 151936,
                                                .hidden_size = 4096,
                                                .intermediate_size = 22016,
                                                .num_hidden_layers = 32,
                                                .num_attention_heads = 32,
                                                .num_key_value_heads = 32,
                                                .head_dim = 128,
                                                .max_position_embeddings = 32768});
  qwen_windows(reader, config);
  const bool attention_bias = reader.boolean("attention_bias", false);
  const RopeConfig rope = reader.rope(config.blocks[0].attention.head_dim);
  for (BlockConfig& block : config.blocks) {
    block.attention.qk_norm = AttentionConfig::QkNorm::head;
    block.attention.qkv_bias = block.attention.out_bias = attention_bias;
    block.attention.rope = rope;
  }
  return config;
}

}  // namespace

const Family qwen3_family{"qwen3", "Qwen3ForCausalLM", "model.", from_config, same_name, nullptr};

}  // namespace cairn::models
