// GLM-5 (Zhipu AI 2026): DeepSeek-V3.2 whose indexer is rotated in interleaved pairs, and where a layer may use the set
// that a layer before it has chosen.
#include "models/families/latent.h"

namespace cairn::models {
namespace {

DecoderConfig from_config(ConfigReader& reader) {
  DecoderConfig config = latent_decoder(reader, {.common = {.vocab_size = 154880,
                                                            .hidden_size = 6144,
                                                            .intermediate_size = 12288,
                                                            .num_hidden_layers = 78,
                                                            .num_attention_heads = 64,
                                                            .max_position_embeddings = 202752,
                                                            .rms_norm_eps = 1e-5},
                                                 .q_lora_rank = 2048,
                                                 .needs_q_lora = true,
                                                 .qk_nope_head_dim = 192,
                                                 .qk_rope_head_dim = 64,
                                                 .v_head_dim = 256});
  indexed_layers(reader, config.blocks.size());
  reader.require("mlp_bias", false, "the feed-forward has no biases");
  IndexerConfig indexer = index_keys(reader, {.index_topk = 2048, .index_n_heads = 32, .index_head_dim = 128},
                                     config.blocks[0].mla->qk_rope_head_dim);
  indexer.init_std = config.init_std;
  indexer.interleaved = true;
  for (BlockConfig& block : config.blocks) block.indexer = indexer;
  shared_indexers(reader, config);
  latent_experts(reader, config, {.n_group = 1, .topk_group = 1, .layer_types = true});
  mtp_modules(reader, config);
  return config;
}

}  // namespace

const Family glm_moe_dsa_family{
    "glm_moe_dsa", "GlmMoeDsaForCausalLM", "model.", from_config, same_name, nullptr, nullptr, nullptr, numbered_on};

}  // namespace cairn::models
