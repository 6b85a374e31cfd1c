// OLMo 2 (OLMo team 2024): norms of what attention and feed-forward put out instead of what they take in, RMSNorm over
// all of q and of k.
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
  const RopeConfig rope = reader.rope(config.blocks[0].attention.head_dim);
  for (BlockConfig& block : config.blocks) {
    block.norms = {.post_mixer = "post_attention_layernorm", .post_feed_forward = "post_feedforward_layernorm"};
    block.attention.qk_norm = AttentionConfig::QkNorm::full;
    block.attention.qkv_bias = block.attention.out_bias = attention_bias;
    block.attention.rope = rope;
  }
  return config;
}

}  // namespace

const Family olmo2_family{"olmo2", "Olmo2ForCausalLM", "model.", from_config, same_name, nullptr};

}  // namespace cairn::models
