// Qwen2 and Qwen2.5 (Yang et al. 2024): Llama with biases on q, k and v, and a sliding window in the upper blocks where
// asked for.
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
                                                .max_position_embeddings = 32768});
  qwen_windows(reader, config);
  const RopeConfig rope = reader.rope(config.blocks[0].attention.head_dim);
  for (BlockConfig& block : config.blocks) {
    block.attention.qkv_bias = true;
    block.attention.rope = rope;
  }
  return config;
}

}  // namespace

const Family qwen2_family{"qwen2", "Qwen2ForCausalLM", "model.", from_config, same_name, nullptr};

}  // namespace cairn::models
