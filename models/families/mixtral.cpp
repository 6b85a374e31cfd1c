// Mixtral (Jiang et al. 2024): Mistral with experts in every block, of which each token goes to two.
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
                                                .max_position_embeddings = 131072,
                                                .rms_norm_eps = 1e-5});
  const int64_t window = reader.optional_integer("sliding_window", std::nullopt).value_or(0);
  reader.require("router_jitter_noise", 0.0, "the router sees what the experts see");
  const RopeConfig rope = reader.rope(config.blocks[0].attention.head_dim, {.default_theta = 1e6});
  ExpertsConfig experts = experts_like(config);
  experts.num_experts = reader.integer("num_local_experts", 8);
  experts.num_experts_per_tok = reader.integer("num_experts_per_tok", 2);
  experts.moe_intermediate_size = config.blocks[0].feed_forward.intermediate_size;
  experts.norm_topk_prob = true;
  router_aux_loss(reader, experts);
  check_experts(experts, "num_local_experts");
  for (BlockConfig& block : config.blocks) {
    block.attention.sliding_window = window;
    block.attention.rope = rope;
    block.experts = experts;
  }
  return config;
}

std::string rename(const std::string& parameter) {
  return replaced(
      parameter,
      {{".mlp.", ".block_sparse_moe."}, {".gate_proj.", ".w1."}, {".up_proj.", ".w3."}, {".down_proj.", ".w2."}});
}

}  // namespace

const Family mixtral_family{"mixtral", "MixtralForCausalLM", "model.", from_config, rename, nullptr};

}  // namespace cairn::models
