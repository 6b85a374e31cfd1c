// OLMo 3 (OLMo team 2025): OLMo 2 with a sliding window in three of four blocks; RoPE is scaled in the others alone.
#include "models/families/families.h"

namespace cairn::models {
namespace {

DecoderConfig from_config(ConfigReader& reader) {
  DecoderConfig config = gated_decoder(reader, {.vocab_size = 50304,
                                                .hidden_size = 4096,
                                                .intermediate_size = 11008,
                                                .num_hidden_layers = 32,
                                                .num_attention_heads = 32,
                                                .rms_norm_eps = 1e-5});
  const bool attention_bias = reader.boolean("attention_bias", false);
  const std::optional<int64_t> window = reader.optional_integer("sliding_window", 4096);
  const auto sliding = sliding_layers(reader, config.blocks.size(), [](int64_t i) { return (i + 1) % 4 != 0; });
  layered_rope(reader, config, sliding, {.full_theta = 5e5, .sliding_theta = 5e5, .sliding_theta_key = "rope_theta"});
  for (size_t i = 0; i < config.blocks.size(); ++i) {
    BlockConfig& block = config.blocks[i];
    block.norms = {.post_mixer = "post_attention_layernorm", .post_feed_forward = "post_feedforward_layernorm"};
    block.attention.qk_norm = AttentionConfig::QkNorm::full;
    block.attention.qkv_bias = block.attention.out_bias = attention_bias;
    if (!sliding[i]) continue;
    if (!window)
      throw ConfigError("sliding_window", "found null, expected an integer: some layers are sliding_attention");
    block.attention.sliding_window = *window;
  }
  if (!reader.has("rope_parameters")) {
    // NOTE: of an older file transformers 5 gives `rope_theta` to the full layers alone (the others get 500000, which
    // every published model has); when such files were written it was meant for both. The newer form says it for each,
    // so that is what we write.
    nlohmann::ordered_json full =
        reader.has("rope_scaling") ? reader.raw().at("rope_scaling") : nlohmann::ordered_json{{"rope_type", "default"}};
    const double theta = reader.number("rope_theta", 5e5);
    full["rope_theta"] = theta;
    reader.write("rope_parameters",
                 {{"full_attention", full}, {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", theta}}}});
    reader.drop("rope_theta");
    reader.drop("rope_scaling");
  }
  return config;
}

}  // namespace

const Family olmo3_family{"olmo3", "Olmo3ForCausalLM", "model.", from_config, same_name, nullptr};

}  // namespace cairn::models
