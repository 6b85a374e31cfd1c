// What the families with latent attention share: DeepSeek-V3, DeepSeek-V3.2, GLM-5.
#pragma once

#include "models/families/families.h"

namespace cairn::models {

struct LatentDefaults {
  Defaults common;
  int64_t q_lora_rank;
  bool needs_q_lora;  // null is not allowed: the indexer reads the query's latent
  int64_t qk_nope_head_dim, qk_rope_head_dim, v_head_dim;
};

// A decoder of equal blocks with latent attention, interleaved RoPE, and a gated feed-forward that the family may put
// experts in place of.
DecoderConfig latent_decoder(ConfigReader& reader, const LatentDefaults& defaults);

struct IndexDefaults {
  int64_t index_topk, index_n_heads, index_head_dim;
};
// index_topk, index_n_heads, index_head_dim, and our own index_hadamard.
IndexerConfig index_keys(ConfigReader& reader, const IndexDefaults& defaults, int64_t rotary_dim);

// Which layers have experts: `mlp_layer_types`, or those from `first_sparse` on.
std::vector<bool> sparse_layers(ConfigReader& reader, int64_t layers, int64_t first_sparse);

struct LatentExperts {
  int64_t n_group, topk_group;
  bool layer_types = false;  // `mlp_layer_types` says which layers have experts, where it is given
};
// DeepSeek-V3's experts in the layers from `first_k_dense_replace` on.
void latent_experts(ConfigReader& reader, DecoderConfig& config, const LatentExperts& defaults);

// `layer_types`: every layer attends to what an indexer chooses.
void indexed_layers(ConfigReader& reader, int64_t layers);

// GLM: which layers use the set of one before them, by `indexer_types`, or `index_topk_pattern` ("FSSF"), or
// `index_topk_freq` and `index_skip_topk_offset`. Writes `indexer_types`.
void shared_indexers(ConfigReader& reader, DecoderConfig& config);

}  // namespace cairn::models
