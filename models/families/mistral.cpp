// Mistral 7B (Jiang et al. 2023): Llama with a sliding window in every block.
#include "models/families/families.h"

namespace cairn::models {
namespace {

DecoderConfig from_config(ConfigReader& reader) {
  DecoderConfig config = gated_decoder(reader, {.vocab_size = 32000,
                                                .hidden_size = 4096,
                                                .intermediate_size = 14336,
                                                .num_hidden_layers = 32,
                                                .num_attention_heads = 32,
                                                .num_key_value_heads = 8,
                                                .max_position_embeddings = 131072});
  if (reader.has("layer_types")) {
    throw ConfigError("layer_types",
                      "transformers ignores it for model_type mistral, so it is not supported: sliding_window is that "
                      "of every block");
  }
  const int64_t window = reader.optional_integer("sliding_window", 4096).value_or(0);
  const RopeConfig rope = reader.rope(config.blocks[0].attention.head_dim);
  for (BlockConfig& block : config.blocks) {
    block.attention.sliding_window = window;
    block.attention.rope = rope;
  }
  return config;
}

}  // namespace

const Family mistral_family{"mistral", "MistralForCausalLM", "model.", from_config, same_name, nullptr};

}  // namespace cairn::models
