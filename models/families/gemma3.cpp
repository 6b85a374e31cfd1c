// Gemma 3, the text model (Gemma team 2025): norms before and after attention and feed-forward, their weights stored
// around zero; RMSNorm on each head of q and k; five blocks with a sliding window and a RoPE of their own, then one
// that sees everything.
#include "models/families/families.h"

namespace cairn::models {
namespace {

DecoderConfig from_config(ConfigReader& reader) {
  DecoderConfig config = gated_decoder(reader, {.vocab_size = 262208,
                                                .hidden_size = 2304,
                                                .intermediate_size = 9216,
                                                .num_hidden_layers = 26,
                                                .num_attention_heads = 8,
                                                .num_key_value_heads = 4,
                                                .head_dim = 256,
                                                .max_position_embeddings = 131072,
                                                .tie_word_embeddings = true,
                                                .activation_key = "hidden_activation",
                                                .activation = "gelu_pytorch_tanh",
                                                .heads_divide = true});
  config.norm.offset = 1;
  config.embedding_scale = std::sqrt(static_cast<double>(config.hidden_size));
  config.logit_softcap = reader.optional_number("final_logit_softcapping", std::nullopt).value_or(0);
  reader.require("attn_logit_softcapping", nullptr, "transformers does not apply it in this family");
  reader.require("use_bidirectional_attention", false, "the decoder is causal");
  const bool attention_bias = reader.boolean("attention_bias", false);
  const double scalar = reader.positive("query_pre_attn_scalar", 256);
  // transformers takes an integer alone.
  nlohmann::ordered_json written = 256;
  if (reader.has("query_pre_attn_scalar")) written = reader.raw().at("query_pre_attn_scalar");
  reader.write("query_pre_attn_scalar", written);

  const std::optional<int64_t> window = reader.optional_integer("sliding_window", 4096);
  // transformers writes it with an underscore, and either is read only where there are no layer_types.
  const char* pattern_key =
      reader.has("_sliding_window_pattern") ? "_sliding_window_pattern" : "sliding_window_pattern";
  reader.ignore({"_sliding_window_pattern", "sliding_window_pattern"});
  const int64_t pattern = reader.has(pattern_key) ? reader.integer(pattern_key, std::nullopt) : 6;
  const auto sliding = sliding_layers(reader, config.blocks.size(), [&](int64_t i) { return (i + 1) % pattern != 0; });
  layered_rope(reader, config, sliding,
               {.full_theta = 1e6, .sliding_theta = 1e4, .sliding_theta_key = "rope_local_base_freq"});
  for (size_t i = 0; i < config.blocks.size(); ++i) {
    BlockConfig& block = config.blocks[i];
    block.norms = {.pre_mixer = "input_layernorm",
                   .post_mixer = "post_attention_layernorm",
                   .pre_feed_forward = "pre_feedforward_layernorm",
                   .post_feed_forward = "post_feedforward_layernorm"};
    block.attention.qk_norm = AttentionConfig::QkNorm::head;
    block.attention.norm = config.norm;
    block.attention.qkv_bias = block.attention.out_bias = attention_bias;
    block.attention.scale = 1 / std::sqrt(scalar);
    if (!sliding[i]) continue;
    if (!window)
      throw ConfigError("sliding_window", "found null, expected an integer: some layers are sliding_attention");
    block.attention.sliding_window = *window;
  }
  return config;
}

}  // namespace

const Family gemma3_text_family{"gemma3_text", "Gemma3ForCausalLM", "model.", from_config, same_name, nullptr};

}  // namespace cairn::models
