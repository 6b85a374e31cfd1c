// DeepSeek-V3.2 (DeepSeek-AI 2025): DeepSeek-V3 that attends to the keys which a lightning indexer chooses.
#include "models/families/latent.h"

namespace cairn::models {
namespace {

DecoderConfig from_config(ConfigReader& reader) {
  DecoderConfig config = latent_decoder(reader, {.common = {.vocab_size = 129280,
                                                            .hidden_size = 7168,
                                                            .intermediate_size = 18432,
                                                            .num_hidden_layers = 61,
                                                            .num_attention_heads = 128,
                                                            .max_position_embeddings = 163840},
                                                 .q_lora_rank = 1536,
                                                 .needs_q_lora = true,
                                                 .qk_nope_head_dim = 128,
                                                 .qk_rope_head_dim = 64,
                                                 .v_head_dim = 128});
  indexed_layers(reader, config.blocks.size());
  reader.require("mlp_bias", false, "the feed-forward has no biases");
  IndexerConfig indexer = index_keys(reader, {.index_topk = 2048, .index_n_heads = 64, .index_head_dim = 128},
                                     config.blocks[0].mla->qk_rope_head_dim);
  indexer.init_std = config.init_std;
  indexer.interleaved = false;  // NOTE: the layer's own RoPE is interleaved
  for (BlockConfig& block : config.blocks) block.indexer = indexer;
  latent_experts(reader, config, {.n_group = 8, .topk_group = 4, .layer_types = true});
  mtp_modules(reader, config);
  return config;
}

}  // namespace

const Family deepseek_v32_family{
    "deepseek_v32", "DeepseekV32ForCausalLM", "model.", from_config, same_name, nullptr, "deepseek_v3", nullptr,
    numbered_on};

}  // namespace cairn::models
