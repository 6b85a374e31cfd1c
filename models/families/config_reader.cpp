#include "models/families/config_reader.h"

#include <numeric>

namespace cairn::models {
namespace {

std::string shown(const nlohmann::ordered_json& value) { return value.dump(); }

// Keys that say nothing about what is computed; every family passes them on.
constexpr const char* kPassedOn[] = {"architectures",
                                     "model_type",
                                     "torch_dtype",
                                     "dtype",
                                     "transformers_version",
                                     "use_cache",
                                     "bos_token_id",
                                     "eos_token_id",
                                     "pad_token_id",
                                     "_name_or_path",
                                     "return_dict",
                                     "output_hidden_states",
                                     "output_attentions",
                                     "pretraining_tp",
                                     "tokenizer_class",
                                     "unk_token_id",
                                     "sep_token_id",
                                     "_attn_implementation",
                                     "is_encoder_decoder",
                                     "chunk_size_feed_forward",
                                     "id2label",
                                     "label2id",
                                     "problem_type",
                                     "tie_encoder_decoder",
                                     "add_cross_attention",
                                     "is_decoder",
                                     "cross_attention_hidden_size",
                                     "decoder_start_token_id",
                                     "finetuning_task",
                                     "initializer_range",
                                     "cache_implementation",
                                     "prefix",
                                     "task_specific_params",
                                     "transformers.js_config",
                                     "summary_activation",
                                     "summary_first_dropout",
                                     "summary_proj_to_labels",
                                     "summary_type",
                                     "summary_use_proj",
                                     "attn_implementation"};

// Levenshtein's distance.
size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t replaced = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
    }
  }
  return row.back();
}

}  // namespace

std::string did_you_mean(const std::string& word, const std::vector<std::string>& candidates) {
  std::string best;
  size_t least = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(word, candidate);
    if (distance < least) least = distance, best = candidate;
  }
  return best.empty() ? "" : fmt::format(" (did you mean '{}'?)", best);
}

const nlohmann::ordered_json* ConfigReader::find(const std::string& key, bool may_be_absent) {
  known_.insert(key);
  if (has(key)) return &config_.at(key);
  if (!may_be_absent) throw ConfigError(key, "is missing, and this family has no default for it");
  return nullptr;
}

int64_t ConfigReader::integer(const std::string& key, std::optional<int64_t> fallback, int64_t minimum) {
  const auto* value = find(key, fallback.has_value());
  if (value && !value->is_number_integer())
    throw ConfigError(key, fmt::format("found {}, expected an integer", shown(*value)));
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

double ConfigReader::positive(const std::string& key, std::optional<double> fallback) {
  const double result = number(key, fallback);
  if (!(result > 0)) throw ConfigError(key, fmt::format("found {}, expected a number above zero", result));
  return result;
}

bool ConfigReader::boolean(const std::string& key, std::optional<bool> fallback) {
  const auto* value = find(key, fallback.has_value());
  if (value && !value->is_boolean())
    throw ConfigError(key, fmt::format("found {}, expected true or false", shown(*value)));
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
      if (!item.is_number_integer())
        throw ConfigError(key, fmt::format("found {}, expected a list of integers", shown(*value)));
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
    if (!value.is_null() && !value.is_number_integer())
      throw ConfigError(key, fmt::format("found {}, expected an integer or null", shown(value)));
    if (!value.is_null() && value.get<int64_t>() < 1)
      throw ConfigError(key, fmt::format("found {}, expected a positive integer or null", shown(value)));
    fallback = value.is_null() ? std::nullopt : std::optional<int64_t>(value.get<int64_t>());
  }
  resolved_[key] = fallback ? nlohmann::ordered_json(*fallback) : nlohmann::ordered_json();
  return fallback;
}

std::optional<double> ConfigReader::optional_number(const std::string& key, std::optional<double> fallback) {
  known_.insert(key);
  if (config_.contains(key)) {
    const auto& value = config_.at(key);
    if (!value.is_null() && !value.is_number())
      throw ConfigError(key, fmt::format("found {}, expected a number or null", shown(value)));
    if (!value.is_null() && !(value.get<double>() > 0))
      throw ConfigError(key, fmt::format("found {}, expected a positive number or null", shown(value)));
    fallback = value.is_null() ? std::nullopt : std::optional<double>(value.get<double>());
  }
  resolved_[key] = fallback ? nlohmann::ordered_json(*fallback) : nlohmann::ordered_json();
  return fallback;
}

RopeConfig ConfigReader::rope(int64_t head_dim, const RopeKeys& keys) {
  for (const char* key : {"rope_parameters", "rope_scaling"}) known_.insert(key);
  known_.insert(keys.theta_key);
  if (!keys.partial_key.empty()) known_.insert(keys.partial_key);
  nlohmann::ordered_json found = nlohmann::ordered_json::object();
  std::string where = "rope_parameters";
  if (has("rope_parameters")) {
    if (has("rope_scaling") && config_.at("rope_scaling") != config_.at("rope_parameters")) {
      throw ConfigError("rope_scaling",
                        "found beside rope_parameters, which says the same in newer files: keep one of them");
    }
    found = config_.at("rope_parameters");
    if (!found.is_object()) throw ConfigError(where, fmt::format("found {}, expected a mapping", shown(found)));
    if (!keys.layer_type.empty()) {
      for (const auto& [key, value] : found.items()) {
        if (!value.is_object() && !value.is_null()) {
          throw ConfigError(
              where,
              fmt::format("found the key '{}', expected one mapping for each of full_attention and sliding_attention",
                          key));
        }
      }
      found = found.contains(keys.layer_type) && !found.at(keys.layer_type).is_null()
                  ? found.at(keys.layer_type)
                  : nlohmann::ordered_json::object();
      where += "." + keys.layer_type;
    }
  } else if (has("rope_scaling") && keys.scaling_applies) {
    where = "rope_scaling";
    found = config_.at(where);
    if (!found.is_object()) throw ConfigError(where, fmt::format("found {}, expected a mapping", shown(found)));
  }

  RopeConfig rope;
  rope.rope_theta = keys.default_theta;
  rope.max_position_embeddings = config_.value("max_position_embeddings", int64_t{0});
  std::set<std::string> read;
  auto take = [&](const char* key, auto& field) {
    read.insert(key);
    if (!found.contains(key) || found.at(key).is_null()) return false;
    try {
      found.at(key).get_to(field);
    } catch (const nlohmann::json::exception&) {
      throw ConfigError(where, fmt::format("{}: found {}", key, shown(found.at(key))));
    }
    return true;
  };
  take("type", rope.rope_type);
  take("rope_type", rope.rope_type);
  if (!take("rope_theta", rope.rope_theta)) rope.rope_theta = number(keys.theta_key, keys.default_theta);
  if (!(rope.rope_theta > 0))
    throw ConfigError(where, fmt::format("rope_theta: found {}, expected a number above zero", rope.rope_theta));
  double partial = keys.default_partial;
  if (!take("partial_rotary_factor", partial) && !keys.partial_key.empty())
    partial = number(keys.partial_key, keys.default_partial);
  if (keys.partial_key.empty() &&
      (partial != 1 || (has("partial_rotary_factor") && config_.at("partial_rotary_factor") != 1.0))) {
    throw ConfigError("partial_rotary_factor", "this family rotates whole heads: expected 1, or no such key");
  }
  rope.rotary_dim = static_cast<int64_t>(static_cast<double>(head_dim) * partial);

  // Each type reads keys of its own; of these `needs` has to be there.
  struct Type {
    const char* name;
    std::vector<std::string> needs, may;
  };
  static const Type types[] = {
      {"default", {}, {}},
      {"linear", {"factor"}, {}},
      {"dynamic", {"factor"}, {"original_max_position_embeddings"}},
      {"llama3", {"factor", "low_freq_factor", "high_freq_factor"}, {"original_max_position_embeddings"}},
      {"yarn",
       {},
       {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "truncate"}},
  };
  const Type* type = nullptr;
  std::string known_types;
  for (const Type& candidate : types) {
    if (rope.rope_type == candidate.name) type = &candidate;
    known_types += (known_types.empty() ? "" : ", ") + std::string(candidate.name);
  }
  if (!type)
    throw ConfigError(where,
                      fmt::format("rope_type: '{}' is not supported; there are {}", rope.rope_type, known_types));
  for (const std::string& key : type->needs) {
    if (!found.contains(key) || found.at(key).is_null())
      throw ConfigError(where, fmt::format("{} is missing, which rope_type {} needs", key, rope.rope_type));
  }
  read.insert(type->needs.begin(), type->needs.end());
  read.insert(type->may.begin(), type->may.end());
  for (const auto& [key, value] : found.items()) {
    if (!read.contains(key)) {
      throw ConfigError(where, fmt::format("unknown key '{}' for rope_type {}{}", key, rope.rope_type,
                                           did_you_mean(key, {read.begin(), read.end()})));
    }
  }
  const bool has_factor = take("factor", rope.factor);
  if (!take("original_max_position_embeddings", rope.original_max_position_embeddings)) {
    // Some files keep it beside max_position_embeddings.
    rope.original_max_position_embeddings =
        config_.value("original_max_position_embeddings", rope.max_position_embeddings);
  }
  take("low_freq_factor", rope.low_freq_factor);
  take("high_freq_factor", rope.high_freq_factor);
  take("beta_fast", rope.beta_fast);
  take("beta_slow", rope.beta_slow);
  take("attention_factor", rope.attention_factor);
  take("mscale", rope.mscale);
  take("mscale_all_dim", rope.mscale_all_dim);
  take("truncate", rope.truncate);
  if (rope.rope_type == "yarn" && !has_factor) {
    rope.factor =
        static_cast<double>(rope.max_position_embeddings) / static_cast<double>(rope.original_max_position_embeddings);
  }
  if (!(rope.factor > 0))
    throw ConfigError(where, fmt::format("factor: found {}, expected a number above zero", rope.factor));

  // Written back in the form in which it came; transformers reads both.
  if (has("rope_parameters")) {
    resolved_["rope_parameters"] = config_.at("rope_parameters");
    drop("rope_scaling");
  } else {
    resolved_[keys.theta_key] = rope.rope_theta;
    resolved_["rope_scaling"] =
        config_.contains("rope_scaling") ? config_.at("rope_scaling") : nlohmann::ordered_json();
  }
  return rope;
}

void ConfigReader::dropout_rates(std::initializer_list<const char*> keys) {
  for (const char* key : keys) {
    known_.insert(key);
    if (strict_ && has(key) && config_.at(key) != 0.0) {
      throw ConfigError(
          key, fmt::format("found {}, expected 0: dropout is one rate here, set by `dropout`", shown(config_.at(key))));
    }
  }
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
    const bool passed =
        std::any_of(std::begin(kPassedOn), std::end(kPassedOn), [&](const char* k) { return key == k; });
    if (!passed && !known_.contains(key)) keys.push_back(key);
  }
  return keys;
}

nlohmann::ordered_json ConfigReader::resolved() const {
  nlohmann::ordered_json out = config_;
  for (const auto& [key, value] : resolved_.items()) out[key] = value;
  for (const std::string& key : dropped_) out.erase(key);
  return out;
}

}  // namespace cairn::models
