#include "models/families/families.h"

namespace cairn::models {

int64_t head_width(int64_t hidden_size, int64_t heads, const char* heads_key, const char* hidden_key) {
  if (hidden_size % heads)
    throw ConfigError(heads_key,
                      fmt::format("found {}, expected a divisor of {} ({})", heads, hidden_key, hidden_size));
  return hidden_size / heads;
}

kernels::Activation activation(ConfigReader& reader, const std::string& key, const std::string& fallback) {
  const std::string name = reader.text(key, fallback);
  try {
    return kernels::activation_from_name(name);
  } catch (const std::invalid_argument& error) {
    throw ConfigError(key, error.what());
  }
}

DecoderConfig gated_decoder(ConfigReader& reader, const Defaults& defaults) {
  DecoderConfig config;
  config.vocab_size = reader.integer("vocab_size", defaults.vocab_size);
  config.hidden_size = reader.integer("hidden_size", defaults.hidden_size);
  config.max_position_embeddings = reader.integer("max_position_embeddings", defaults.max_position_embeddings);
  config.tie_word_embeddings = reader.boolean("tie_word_embeddings", defaults.tie_word_embeddings);
  config.init_std = reader.positive("initializer_range", 0.02);
  config.norm = {.kind = NormConfig::Kind::rms, .eps = reader.positive("rms_norm_eps", defaults.rms_norm_eps)};

  BlockConfig block;
  block.norms = {.pre_mixer = "input_layernorm", .pre_feed_forward = "post_attention_layernorm"};
  AttentionConfig& attention = block.attention;
  const int64_t heads = reader.integer("num_attention_heads", defaults.num_attention_heads);
  attention.num_attention_heads = heads;
  // null means one for each query head, a missing key the family's default.
  attention.num_key_value_heads =
      reader
          .optional_integer("num_key_value_heads", defaults.num_key_value_heads ? defaults.num_key_value_heads : heads)
          .value_or(heads);
  reader.write("num_key_value_heads", attention.num_key_value_heads);
  const bool given = reader.has("head_dim") || defaults.head_dim;
  if (defaults.heads_divide || !given) head_width(config.hidden_size, heads);
  reader.ignore({"head_dim"});
  attention.head_dim = given ? reader.integer("head_dim", defaults.head_dim) : config.hidden_size / heads;
  attention.norm = config.norm;
  attention.init_std = attention.out_init_std = config.init_std;
  block.feed_forward = {.intermediate_size = reader.integer("intermediate_size", defaults.intermediate_size),
                        .activation = activation(reader, defaults.activation_key, defaults.activation),
                        .init_std = config.init_std,
                        .out_init_std = config.init_std};
  reader.dropout_rates({"attention_dropout"});
  config.blocks.assign(reader.integer("num_hidden_layers", defaults.num_hidden_layers), block);
  return config;
}

std::vector<bool> sliding_layers(ConfigReader& reader, int64_t layers, const std::function<bool(int64_t)>& fallback) {
  std::vector<std::string> types;
  for (int64_t i = 0; i < layers; ++i) types.push_back(fallback(i) ? "sliding_attention" : "full_attention");
  types = reader.texts("layer_types", types);
  if (static_cast<int64_t>(types.size()) != layers) {
    throw ConfigError("layer_types",
                      fmt::format("found {} entries, expected {} (num_hidden_layers)", types.size(), layers));
  }
  std::vector<bool> sliding;
  for (const std::string& type : types) {
    if (type != "sliding_attention" && type != "full_attention") {
      throw ConfigError("layer_types", fmt::format("found '{}', expected full_attention or sliding_attention", type));
    }
    sliding.push_back(type == "sliding_attention");
  }
  return sliding;
}

void qwen_windows(ConfigReader& reader, DecoderConfig& config) {
  const bool use = reader.boolean("use_sliding_window", false);
  const std::optional<int64_t> window = reader.optional_integer("sliding_window", 4096);
  const int64_t first = reader.integer("max_window_layers", 28, 0);
  const auto sliding =
      sliding_layers(reader, config.blocks.size(), [&](int64_t i) { return use && window && i >= first; });
  for (size_t i = 0; i < sliding.size(); ++i) {
    if (!sliding[i]) continue;
    if (!use || !window)
      throw ConfigError("layer_types",
                        "found sliding_attention, which needs use_sliding_window: true and a sliding_window");
    config.blocks[i].attention.sliding_window = *window;
  }
}

void layered_rope(ConfigReader& reader, DecoderConfig& config, const std::vector<bool>& sliding,
                  const LayeredRope& keys) {
  // The older `rope_scaling` is about the layers that see everything.
  const int64_t head_dim = config.blocks[0].attention.head_dim;
  const RopeConfig full = reader.rope(head_dim, {.default_theta = keys.full_theta, .layer_type = "full_attention"});
  const double sliding_theta =
      std::string(keys.sliding_theta_key) == "rope_theta" ? full.rope_theta : keys.sliding_theta;
  const RopeConfig local = reader.rope(head_dim, {.default_theta = sliding_theta,
                                                  .theta_key = keys.sliding_theta_key,
                                                  .layer_type = "sliding_attention",
                                                  .scaling_applies = false});
  for (size_t i = 0; i < sliding.size(); ++i) config.blocks[i].attention.rope = sliding[i] ? local : full;
}

std::string replaced(std::string name, std::initializer_list<std::pair<const char*, const char*>> pairs) {
  for (const auto& [from, to] : pairs) {
    if (const auto at = name.find(from); at != std::string::npos) name.replace(at, std::string_view(from).size(), to);
  }
  return name;
}

std::vector<DiskTensor> fused_qkv(const Parameters& parameters, std::string (*rename)(const std::string&),
                                  DiskLayout (*layout)(const std::string& disk_name)) {
  std::vector<DiskTensor> tensors;
  for (const Parameter& parameter : parameters.all()) {
    const std::string name = rename(parameter.name);
    if (!tensors.empty() && tensors.back().name == name) {
      tensors.back().parameters.push_back(parameter.name);
    } else {
      tensors.push_back({name, {parameter.name}, layout(name)});
    }
  }
  return tensors;
}

void mtp_modules(ConfigReader& reader, DecoderConfig& config) {
  const int64_t modules = reader.integer("num_nextn_predict_layers", 0, 0);
  if (!reader.has("num_nextn_predict_layers")) reader.drop("num_nextn_predict_layers");
  BlockConfig block = config.blocks.back();
  block.delta_net.reset();  // Qwen3-Next: attention, whatever the last block is
  if (block.indexer) block.indexer->owner = -1, block.indexer->users = 1;
  config.mtp.assign(modules, block);
}

std::string numbered_on(const std::string& parameter, const DecoderConfig& config) {
  const std::string own = "mtp.layers.";
  size_t digits = 0;
  const int64_t module = std::stoll(parameter.substr(own.size()), &digits);
  return fmt::format("model.layers.{}{}", static_cast<int64_t>(config.blocks.size()) + module,
                     parameter.substr(own.size() + digits));
}

const char* experts_key(const ConfigReader& reader, const char* own) {
  // transformers 5 writes its own name for all families.
  const bool other = !reader.has(own) && reader.has("num_local_experts");
  return other ? "num_local_experts" : own;
}

ExpertsConfig experts_like(const DecoderConfig& config) {
  ExpertsConfig experts;
  experts.activation = config.blocks[0].feed_forward.activation;
  experts.init_std = experts.out_init_std = config.init_std;
  return experts;
}

void router_aux_loss(ConfigReader& reader, ExpertsConfig& experts) {
  const double coefficient = reader.number("router_aux_loss_coef", 0.001);
  if (!(coefficient >= 0))
    throw ConfigError("router_aux_loss_coef", fmt::format("found {}, expected zero or a number above it", coefficient));
  // transformers adds the loss where the logits of the router are asked for; who types a coefficient asks for it.
  const bool typed = reader.strict() && reader.has("router_aux_loss_coef") && coefficient > 0;
  if (reader.boolean("output_router_logits", typed)) experts.router_aux_loss_coef = coefficient;
}

void check_experts(const ExpertsConfig& experts, const char* experts_name) {
  const int64_t E = experts.num_experts, k = experts.num_experts_per_tok, groups = experts.n_group;
  if (E % groups)
    throw ConfigError("n_group", fmt::format("found {}, expected a divisor of {} ({})", groups, experts_name, E));
  if (groups > 1 && E / groups < 2) {
    throw ConfigError("n_group", fmt::format("found {}, expected groups of at least two of the {} experts ({})", groups,
                                             E, experts_name));
  }
  if (experts.topk_group > groups)
    throw ConfigError("topk_group", fmt::format("found {}, expected at most n_group ({})", experts.topk_group, groups));
  if (const int64_t open = experts.topk_group * (E / groups); k > open) {
    throw ConfigError("num_experts_per_tok",
                      groups > 1
                          ? fmt::format("found {}, expected at most the {} experts of topk_group groups", k, open)
                          : fmt::format("found {}, expected at most {} ({})", k, experts_name, E));
  }
}

ExpertsConfig deepseek_experts(ConfigReader& reader, const DecoderConfig& config, const DeepseekExperts& defaults) {
  ExpertsConfig experts = experts_like(config);
  const char* key = experts_key(reader, "n_routed_experts");
  experts.num_experts = reader.integer(key, defaults.num_experts);
  experts.num_experts_per_tok = reader.integer("num_experts_per_tok", defaults.num_experts_per_tok);
  experts.moe_intermediate_size = reader.integer("moe_intermediate_size", defaults.moe_intermediate_size);
  experts.scoring = ExpertsConfig::Scoring::sigmoid;
  experts.correction_bias = true;
  experts.norm_topk_prob = reader.boolean("norm_topk_prob", true);
  experts.routed_scaling_factor = reader.positive("routed_scaling_factor", defaults.routed_scaling_factor);
  experts.n_group = reader.integer("n_group", defaults.n_group);
  experts.topk_group = reader.integer("topk_group", defaults.topk_group);
  experts.shared_intermediate_size =
      experts.moe_intermediate_size * reader.integer("n_shared_experts", defaults.n_shared_experts);
  // What the published files say besides, of which there is one way each.
  reader.require("scoring_func", "sigmoid", "the family's router");
  reader.require("topk_method", "noaux_tc", "the family's router");
  reader.require("moe_layer_freq", 1, "experts stand in every block after the dense ones");
  reader.ignore({"output_router_logits", "ep_size"});
  check_experts(experts, key);
  return experts;
}

}  // namespace cairn::models
