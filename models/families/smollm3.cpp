// SmolLM3 (Hugging Face 2025): Llama where every fourth block has no position embedding (Yang et al. 2025, "RoPE to
// NoPE and back again").
#include "models/families/families.h"

namespace cairn::models {
namespace {

DecoderConfig from_config(ConfigReader& reader) {
  DecoderConfig config = gated_decoder(reader, {.vocab_size = 128256,
                                                .hidden_size = 2048,
                                                .intermediate_size = 11008,
                                                .num_hidden_layers = 36,
                                                .num_attention_heads = 16,
                                                .num_key_value_heads = 4,
                                                .max_position_embeddings = 32768,
                                                .tie_word_embeddings = true});
  const int64_t layers = config.blocks.size();
  const int64_t interval = reader.integer("no_rope_layer_interval", 4);
  std::vector<int64_t> has_rope;
  for (int64_t i = 0; i < layers; ++i) has_rope.push_back((i + 1) % interval != 0);
  has_rope = reader.integers("no_rope_layers", has_rope);  // 1: the block has RoPE, whatever the name says
  if (static_cast<int64_t>(has_rope.size()) < layers) {
    throw ConfigError("no_rope_layers",
                      fmt::format("found {} entries, expected {} (num_hidden_layers)", has_rope.size(), layers));
  }
  const bool use_window = reader.boolean("use_sliding_window", false);
  const std::optional<int64_t> window = reader.optional_integer("sliding_window", std::nullopt);
  const auto sliding = sliding_layers(reader, layers, [&](int64_t i) { return use_window && window && !has_rope[i]; });
  const bool attention_bias = reader.boolean("attention_bias", false), mlp_bias = reader.boolean("mlp_bias", false);
  const RopeConfig rope = reader.rope(config.blocks[0].attention.head_dim, {.default_theta = 2e6});
  for (int64_t i = 0; i < layers; ++i) {
    BlockConfig& block = config.blocks[i];
    if (sliding[i] && (!use_window || !window)) {
      throw ConfigError("layer_types",
                        "found sliding_attention, which needs use_sliding_window: true and a sliding_window");
    }
    if (sliding[i]) block.attention.sliding_window = *window;
    if (has_rope[i]) block.attention.rope = rope;
    block.attention.qkv_bias = block.attention.out_bias = attention_bias;
    block.feed_forward.bias = mlp_bias;
  }
  return config;
}

}  // namespace

const Family smollm3_family{"smollm3", "SmolLM3ForCausalLM", "model.", from_config, same_name, nullptr};

}  // namespace cairn::models
