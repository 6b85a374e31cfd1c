// Qwen3 with experts (Yang et al. 2025): in every `decoder_sparse_step`-th block but those of `mlp_only_layers`.
#include "models/families/families.h"

namespace cairn::models {
namespace {

DecoderConfig from_config(ConfigReader& reader) {
  DecoderConfig config = gated_decoder(reader, {.vocab_size = 151936,
                                                .hidden_size = 2048,
                                                .intermediate_size = 6144,
                                                .num_hidden_layers = 24,
                                                .num_attention_heads = 32,
                                                .num_key_value_heads = 4,
                                                .max_position_embeddings = 32768});
  // Unlike Qwen3, all blocks have the window where one is used.
  const bool use = reader.boolean("use_sliding_window", false);
  const std::optional<int64_t> window = reader.optional_integer("sliding_window", 4096);
  reader.ignore({"max_window_layers"});
  const bool attention_bias = reader.boolean("attention_bias", false);
  const RopeConfig rope = reader.rope(config.blocks[0].attention.head_dim);
  ExpertsConfig experts = experts_like(config);
  experts.num_experts = reader.integer(experts_key(reader, "num_experts"), 128);
  experts.num_experts_per_tok = reader.integer("num_experts_per_tok", 8);
  experts.moe_intermediate_size = reader.integer("moe_intermediate_size", 768);
  experts.norm_topk_prob = reader.boolean("norm_topk_prob", false);
  router_aux_loss(reader, experts);
  check_experts(experts, "num_experts");
  const int64_t step = reader.integer("decoder_sparse_step", 1);
  const std::vector<int64_t> dense = reader.integers("mlp_only_layers", {});
  for (size_t i = 0; i < config.blocks.size(); ++i) {
    BlockConfig& block = config.blocks[i];
    block.attention.qk_norm = AttentionConfig::QkNorm::head;
    block.attention.qkv_bias = block.attention.out_bias = attention_bias;
    block.attention.sliding_window = use ? window.value_or(0) : 0;
    block.attention.rope = rope;
    const bool only = std::find(dense.begin(), dense.end(), static_cast<int64_t>(i)) != dense.end();
    if (!only && (static_cast<int64_t>(i) + 1) % step == 0) block.experts = experts;
  }
  return config;
}

}  // namespace

const Family qwen3_moe_family{"qwen3_moe", "Qwen3MoeForCausalLM", "model.", from_config, same_name, nullptr};

}  // namespace cairn::models
