#include "models/families/latent.h"

namespace cairn::models {
namespace {

// A key that others decide: transformers writes it into its files; typed, it has to say the same.
void derived(ConfigReader& reader, const char* key, int64_t value, const char* from) {
  reader.ignore({key});
  if (reader.strict() && reader.has(key) && reader.raw().at(key) != value)
    throw ConfigError(
        key, fmt::format("found {}, expected {}: it follows from {}", reader.raw().at(key).dump(), value, from));
  reader.write(key, value);
}

std::vector<std::string> entry_a_layer(ConfigReader& reader, const char* key, std::vector<std::string> fallback,
                                       std::initializer_list<const char*> kinds) {
  const size_t layers = fallback.size();
  const auto types = reader.texts(key, std::move(fallback));
  if (types.size() != layers)
    throw ConfigError(key, fmt::format("found {} entries, expected {} (num_hidden_layers)", types.size(), layers));
  for (const std::string& type : types) {
    if (std::none_of(kinds.begin(), kinds.end(), [&](const char* kind) { return type == kind; }))
      throw ConfigError(key, fmt::format("found '{}', expected {}", type, fmt::join(kinds, " or ")));
  }
  return types;
}

}  // namespace

DecoderConfig latent_decoder(ConfigReader& reader, const LatentDefaults& defaults) {
  Defaults common = defaults.common;
  common.head_dim = defaults.qk_rope_head_dim;  // this family's head_dim is the part of a head that is rotated
  DecoderConfig config = gated_decoder(reader, common);
  const int64_t heads = config.blocks[0].attention.num_attention_heads;
  if (config.blocks[0].attention.num_key_value_heads != heads) {
    throw ConfigError("num_key_value_heads",
                      fmt::format("found {}, expected {} (num_attention_heads): every head has keys of its own",
                                  config.blocks[0].attention.num_key_value_heads, heads));
  }
  if (defaults.needs_q_lora && reader.raw().contains("q_lora_rank") && !reader.has("q_lora_rank"))
    throw ConfigError("q_lora_rank", "found null, expected an integer: the indexer reads the latent of the queries");
  MlaConfig mla;
  mla.num_attention_heads = heads;
  mla.q_lora_rank = defaults.needs_q_lora ? reader.integer("q_lora_rank", defaults.q_lora_rank)
                                          : reader.optional_integer("q_lora_rank", defaults.q_lora_rank).value_or(0);
  mla.kv_lora_rank = reader.integer("kv_lora_rank", 512);
  mla.qk_nope_head_dim = reader.integer("qk_nope_head_dim", defaults.qk_nope_head_dim);
  mla.qk_rope_head_dim = reader.integer("qk_rope_head_dim", defaults.qk_rope_head_dim);
  mla.v_head_dim = reader.integer("v_head_dim", defaults.v_head_dim);
  mla.bias = reader.boolean("attention_bias", false);
  mla.init_std = mla.out_init_std = config.init_std;
  if (mla.qk_rope_head_dim % 2)
    throw ConfigError("qk_rope_head_dim",
                      fmt::format("found {}, expected an even number: pairs are rotated", mla.qk_rope_head_dim));
  derived(reader, "head_dim", mla.qk_rope_head_dim, "qk_rope_head_dim");
  derived(reader, "qk_head_dim", mla.qk_head_dim(), "qk_nope_head_dim + qk_rope_head_dim");
  mla.rope = reader.rope(mla.qk_rope_head_dim);
  mla.rope.interleaved = true;
  // DeepSeek's YaRN: what is taken out of cos and sin by mscale_all_dim comes back in the scale of the scores.
  const double stretched = mla.rope.rope_type != "default" && mla.rope.mscale_all_dim != 0 && mla.rope.factor > 1
                               ? 0.1 * mla.rope.mscale_all_dim * std::log(mla.rope.factor) + 1
                               : 1;
  mla.scale = stretched * stretched / std::sqrt(static_cast<double>(mla.qk_head_dim()));
  for (BlockConfig& block : config.blocks) {
    block.mla = mla;
    block.attention.head_dim = mla.qk_head_dim();
  }
  return config;
}

IndexerConfig index_keys(ConfigReader& reader, const IndexDefaults& defaults, int64_t rotary_dim) {
  IndexerConfig indexer;
  indexer.index_topk = reader.integer("index_topk", defaults.index_topk);
  indexer.index_n_heads = reader.integer("index_n_heads", defaults.index_n_heads);
  indexer.index_head_dim = reader.integer("index_head_dim", defaults.index_head_dim);
  if (indexer.index_head_dim < rotary_dim) {
    throw ConfigError("index_head_dim", fmt::format("found {}, expected at least {}, the features that RoPE rotates",
                                                    indexer.index_head_dim, rotary_dim));
  }
  indexer.hadamard = reader.boolean("index_hadamard", false);
  if (!indexer.hadamard) reader.drop("index_hadamard");
  if (const int64_t D = indexer.index_head_dim; indexer.hadamard && (D & (D - 1)))
    throw ConfigError("index_hadamard",
                      fmt::format("found true beside an index_head_dim of {}, expected a power of two", D));
  return indexer;
}

std::vector<bool> sparse_layers(ConfigReader& reader, int64_t layers, int64_t first_sparse) {
  std::vector<std::string> types;
  for (int64_t i = 0; i < layers; ++i) types.push_back(i < first_sparse ? "dense" : "sparse");
  types = entry_a_layer(reader, "mlp_layer_types", types, {"dense", "sparse"});
  std::vector<bool> sparse;
  for (const std::string& type : types) sparse.push_back(type == "sparse");
  return sparse;
}

void indexed_layers(ConfigReader& reader, int64_t layers) {
  entry_a_layer(reader, "layer_types", std::vector<std::string>(layers, "indexed_attention"), {"indexed_attention"});
}

void shared_indexers(ConfigReader& reader, DecoderConfig& config) {
  const int64_t layers = config.blocks.size();
  std::vector<std::string> types;
  if (reader.has("index_topk_pattern") && reader.raw().at("index_topk_pattern").is_string()) {
    for (const char c : reader.text("index_topk_pattern", "")) {
      if (c != 'F' && c != 'S')
        throw ConfigError("index_topk_pattern",
                          fmt::format("found '{}', expected F (full) or S (shared) for each layer", c));
      types.push_back(c == 'F' ? "full" : "shared");
    }
    if (static_cast<int64_t>(types.size()) != layers)
      throw ConfigError("index_topk_pattern",
                        fmt::format("found {} letters, expected {} (num_hidden_layers)", types.size(), layers));
  } else if (reader.has("index_topk_pattern")) {
    types = reader.texts("index_topk_pattern", {});
    if (static_cast<int64_t>(types.size()) != layers)
      throw ConfigError("index_topk_pattern",
                        fmt::format("found {} entries, expected {} (num_hidden_layers)", types.size(), layers));
  } else {
    reader.ignore({"index_topk_pattern"});
    const int64_t freq =
                      reader.has("index_topk_freq") ? std::max<int64_t>(reader.integer("index_topk_freq", 1, 0), 1) : 1,
                  offset = reader.has("index_skip_topk_offset") ? reader.integer("index_skip_topk_offset", 2, 0) : 2;
    for (int64_t i = 0; i < layers; ++i)
      types.push_back(std::max<int64_t>(i - offset + 1, 0) % freq == 0 ? "full" : "shared");
  }
  reader.ignore({"index_topk_freq", "index_skip_topk_offset"});
  types = entry_a_layer(reader, "indexer_types", types, {"full", "shared"});
  if (types[0] == "shared")
    throw ConfigError("indexer_types",
                      "found 'shared' for the first layer, which has no layer before it to share with");
  for (int64_t first = 0, end = 0; first < layers; first = end) {
    for (end = first + 1; end < layers && types[end] == "shared";) ++end;
    for (int64_t i = first; i < end; ++i) {
      config.blocks[i].indexer->owner = i == first ? -1 : first;
      config.blocks[i].indexer->users = end - first;
    }
  }
}

void latent_experts(ConfigReader& reader, DecoderConfig& config, const LatentExperts& defaults) {
  const ExpertsConfig experts = deepseek_experts(reader, config,
                                                 {.num_experts = 256,
                                                  .num_experts_per_tok = 8,
                                                  .moe_intermediate_size = 2048,
                                                  .routed_scaling_factor = 2.5,
                                                  .n_group = defaults.n_group,
                                                  .topk_group = defaults.topk_group});
  reader.ignore({"aux_loss_alpha", "seq_aux"});

  const int64_t layers = config.blocks.size(), dense = reader.integer("first_k_dense_replace", 3, 0);
  for (int64_t i = 0; i < layers; ++i) {
    if (i >= dense) config.blocks[i].experts = experts;
  }
  if (!defaults.layer_types) return;
  const auto sparse = sparse_layers(reader, layers, dense);
  for (int64_t i = 0; i < layers; ++i) config.blocks[i].experts = sparse[i] ? std::optional(experts) : std::nullopt;
}

}  // namespace cairn::models
