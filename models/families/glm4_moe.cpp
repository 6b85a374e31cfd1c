// GLM-4.5, 4.6, 4.7 and Air (Zeng et al. 2025): grouped-query attention with half-rotated heads; from block
// `first_k_dense_replace` on DeepSeek-V3's experts.
#include "models/families/families.h"

namespace cairn::models {
namespace {

DecoderConfig from_config(ConfigReader& reader) {
  DecoderConfig config = gated_decoder(reader, {.vocab_size = 151552,
                                                .hidden_size = 4096,
                                                .intermediate_size = 10944,
                                                .num_hidden_layers = 46,
                                                .num_attention_heads = 96,
                                                .num_key_value_heads = 8,
                                                .max_position_embeddings = 131072,
                                                .rms_norm_eps = 1e-5});
  const bool attention_bias = reader.boolean("attention_bias", false), qk_norm = reader.boolean("use_qk_norm", false);
  const RopeConfig rope = reader.rope(config.blocks[0].attention.head_dim,
                                      {.partial_key = "partial_rotary_factor", .default_partial = 0.5});
  const ExpertsConfig experts =
      deepseek_experts(reader, config, {.num_experts = 128, .num_experts_per_tok = 8, .moe_intermediate_size = 1408});
  const int64_t dense = reader.integer("first_k_dense_replace", 1, 0);
  for (size_t i = 0; i < config.blocks.size(); ++i) {
    BlockConfig& block = config.blocks[i];
    if (qk_norm) block.attention.qk_norm = AttentionConfig::QkNorm::head;
    block.attention.qkv_bias = attention_bias;
    block.attention.rope = rope;
    if (static_cast<int64_t>(i) >= dense) block.experts = experts;
  }
  mtp_modules(reader, config);
  return config;
}

}  // namespace

const Family glm4_moe_family{"glm4_moe", "Glm4MoeForCausalLM", "model.", from_config, same_name, nullptr, nullptr,
                             nullptr,    numbered_on};

}  // namespace cairn::models
