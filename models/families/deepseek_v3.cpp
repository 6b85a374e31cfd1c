// DeepSeek-V3 and R1 (DeepSeek-AI 2024): latent attention, and experts in all but the first layers.
#include "models/families/latent.h"

namespace cairn::models {
namespace {

DecoderConfig from_config(ConfigReader& reader) {
  DecoderConfig config = latent_decoder(reader, {.common = {.vocab_size = 129280,
                                                            .hidden_size = 7168,
                                                            .intermediate_size = 18432,
                                                            .num_hidden_layers = 61,
                                                            .num_attention_heads = 128,
                                                            .max_position_embeddings = 4096},
                                                 .q_lora_rank = 1536,
                                                 .needs_q_lora = false,
                                                 .qk_nope_head_dim = 128,
                                                 .qk_rope_head_dim = 64,
                                                 .v_head_dim = 128});
  const bool interleaved = reader.boolean("rope_interleave", true);
  for (BlockConfig& block : config.blocks) block.mla->rope.interleaved = interleaved;
  latent_experts(reader, config, {.n_group = 8, .topk_group = 4});
  mtp_modules(reader, config);
  return config;
}

}  // namespace

const Family deepseek_v3_family{
    "deepseek_v3", "DeepseekV3ForCausalLM", "model.", from_config, same_name, nullptr, nullptr, nullptr, numbered_on};

}  // namespace cairn::models
