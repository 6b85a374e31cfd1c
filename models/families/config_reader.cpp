#include "models/families/config_reader.h"

namespace cairn::models {
namespace {

std::string shown(const nlohmann::ordered_json& value) { return value.dump(); }

// Keys that say nothing about what is computed; every family passes them on.
constexpr const char* kPassedOn[] = {
    "architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id",
    "_name_or_path", "return_dict", "output_hidden_states", "output_attentions", "pretraining_tp", "tokenizer_class", "unk_token_id", "sep_token_id",
    "auto_map", "_attn_implementation", "is_encoder_decoder", "chunk_size_feed_forward", "id2label", "label2id", "problem_type", "tie_encoder_decoder",
    "add_cross_attention", "is_decoder", "cross_attention_hidden_size", "decoder_start_token_id", "finetuning_task", "initializer_range", "cache_implementation",
    "prefix", "task_specific_params", "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj", "init",
    "dropout", "attn_implementation"};

}  // namespace

const nlohmann::ordered_json* ConfigReader::find(const std::string& key, bool may_be_absent) {
  known_.insert(key);
  if (has(key)) return &config_.at(key);
  if (!may_be_absent) throw ConfigError(key, "is missing, and this family has no default for it");
  return nullptr;
}

int64_t ConfigReader::integer(const std::string& key, std::optional<int64_t> fallback, int64_t minimum) {
  const auto* value = find(key, fallback.has_value());
  if (value && !value->is_number_integer()) throw ConfigError(key, fmt::format("found {}, expected an integer", shown(*value)));
  const int64_t result = value ? value->get<int64_t>() : *fallback;
  if (result < minimum) throw ConfigError(key, fmt::format("found {}, expected at least {}", result, minimum));
  resolved_[key] = result;
  return result;
}

double ConfigReader::number(const std::string& key, std::optional<double> fallback) {
  const auto* value = find(key, fallback.has_value());
  if (value && !value->is_number()) throw ConfigError(key, fmt::format("found {}, expected a number", shown(*value)));
  const double result = value ? value->get<double>() : *fallback;
  resolved_[key] = result;
  return result;
}

bool ConfigReader::boolean(const std::string& key, std::optional<bool> fallback) {
  const auto* value = find(key, fallback.has_value());
  if (value && !value->is_boolean()) throw ConfigError(key, fmt::format("found {}, expected true or false", shown(*value)));
  const bool result = value ? value->get<bool>() : *fallback;
  resolved_[key] = result;
  return result;
}

std::string ConfigReader::text(const std::string& key, std::optional<std::string> fallback) {
  const auto* value = find(key, fallback.has_value());
  if (value && !value->is_string()) throw ConfigError(key, fmt::format("found {}, expected a text", shown(*value)));
  const std::string result = value ? value->get<std::string>() : *fallback;
  resolved_[key] = result;
  return result;
}

std::vector<std::string> ConfigReader::texts(const std::string& key, std::vector<std::string> fallback) {
  if (const auto* value = find(key, true)) {
    fallback.clear();
    if (!value->is_array()) throw ConfigError(key, fmt::format("found {}, expected a list of texts", shown(*value)));
    for (const auto& item : *value) {
      if (!item.is_string()) throw ConfigError(key, fmt::format("found {}, expected a list of texts", shown(*value)));
      fallback.push_back(item.get<std::string>());
    }
  }
  resolved_[key] = fallback;
  return fallback;
}

std::vector<int64_t> ConfigReader::integers(const std::string& key, std::vector<int64_t> fallback) {
  if (const auto* value = find(key, true)) {
    fallback.clear();
    if (!value->is_array()) throw ConfigError(key, fmt::format("found {}, expected a list of integers", shown(*value)));
    for (const auto& item : *value) {
      if (!item.is_number_integer()) throw ConfigError(key, fmt::format("found {}, expected a list of integers", shown(*value)));
      fallback.push_back(item.get<int64_t>());
    }
  }
  resolved_[key] = fallback;
  return fallback;
}

std::optional<int64_t> ConfigReader::optional_integer(const std::string& key, std::optional<int64_t> fallback) {
  known_.insert(key);
  if (config_.contains(key)) {
    const auto& value = config_.at(key);
    if (!value.is_null() && !value.is_number_integer()) throw ConfigError(key, fmt::format("found {}, expected an integer or null", shown(value)));
    fallback = value.is_null() ? std::nullopt : std::optional<int64_t>(value.get<int64_t>());
  }
  resolved_[key] = fallback ? nlohmann::ordered_json(*fallback) : nlohmann::ordered_json();
  return fallback;
}

std::optional<double> ConfigReader::optional_number(const std::string& key, std::optional<double> fallback) {
  known_.insert(key);
  if (config_.contains(key)) {
    const auto& value = config_.at(key);
    if (!value.is_null() && !value.is_number()) throw ConfigError(key, fmt::format("found {}, expected a number or null", shown(value)));
    fallback = value.is_null() ? std::nullopt : std::optional<double>(value.get<double>());
  }
  resolved_[key] = fallback ? nlohmann::ordered_json(*fallback) : nlohmann::ordered_json();
  return fallback;
}

RopeConfig ConfigReader::rope(int64_t rotary_dim, double default_theta, const std::string& layer_type) {
  for (const char* key : {"rope_parameters", "rope_theta", "rope_scaling"}) known_.insert(key);
  RopeConfig rope;
  rope.rotary_dim = rotary_dim;
  rope.rope_theta = default_theta;
  rope.max_position_embeddings = config_.value("max_position_embeddings", int64_t{0});
  nlohmann::ordered_json found = nlohmann::ordered_json::object();
  std::string where = "rope_parameters";
  if (has("rope_parameters")) {
    found = config_.at("rope_parameters");
    if (!layer_type.empty() && found.contains(layer_type)) found = found.at(layer_type);
  } else if (has("rope_scaling")) {
    found = config_.at("rope_scaling");
    where = "rope_scaling";
  }
  if (!found.is_object()) throw ConfigError(where, fmt::format("found {}, expected a mapping", shown(found)));
  if (has("rope_theta") && !found.contains("rope_theta")) found["rope_theta"] = config_.at("rope_theta");

  auto take = [&](const char* key, auto& field) {
    if (!found.contains(key) || found.at(key).is_null()) return;
    try {
      found.at(key).get_to(field);
    } catch (const nlohmann::json::exception&) {
      throw ConfigError(where, fmt::format("{}: found {}", key, shown(found.at(key))));
    }
  };
  take("type", rope.rope_type);
  take("rope_type", rope.rope_type);
  take("rope_theta", rope.rope_theta);
  take("factor", rope.factor);
  take("original_max_position_embeddings", rope.original_max_position_embeddings);
  take("low_freq_factor", rope.low_freq_factor);
  take("high_freq_factor", rope.high_freq_factor);
  take("beta_fast", rope.beta_fast);
  take("beta_slow", rope.beta_slow);
  take("attention_factor", rope.attention_factor);
  take("mscale", rope.mscale);
  take("mscale_all_dim", rope.mscale_all_dim);
  take("truncate", rope.truncate);
  take("short_factor", rope.short_factor);
  take("long_factor", rope.long_factor);
  try {
    rope_frequencies(rope);
  } catch (const std::invalid_argument& error) {
    throw ConfigError(where, error.what());
  }
  // Written back as newer and older transformers read it.
  if (config_.contains("rope_parameters")) {
    resolved_["rope_parameters"] = config_.at("rope_parameters");
  } else {
    resolved_["rope_theta"] = rope.rope_theta;
    resolved_["rope_scaling"] = config_.contains("rope_scaling") ? config_.at("rope_scaling") : nlohmann::ordered_json();
  }
  return rope;
}

void ConfigReader::ignore(std::initializer_list<const char*> keys) { known_.insert(keys.begin(), keys.end()); }

void ConfigReader::require(const std::string& key, const nlohmann::json& only_value, const std::string& reason) {
  known_.insert(key);
  if (!config_.contains(key) || config_.at(key) == nlohmann::ordered_json(only_value)) return;
  throw ConfigError(key, fmt::format("found {}, expected {}: {}", shown(config_.at(key)), only_value.dump(), reason));
}

std::vector<std::string> ConfigReader::unknown() const {
  std::vector<std::string> keys;
  for (const auto& [key, value] : config_.items()) {
    const bool passed = std::any_of(std::begin(kPassedOn), std::end(kPassedOn), [&](const char* k) { return key == k; });
    if (!passed && !known_.contains(key)) keys.push_back(key);
  }
  return keys;
}

nlohmann::ordered_json ConfigReader::resolved() const {
  nlohmann::ordered_json out = config_;
  for (const auto& [key, value] : resolved_.items()) out[key] = value;
  return out;
}

}  // namespace cairn::models
