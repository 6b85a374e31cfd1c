// Reads a family's config.json, key by key, with Hugging Face's defaults; what was read is what is written back.
#pragma once

#include <nlohmann/json.hpp>

#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "models/layers/rope.h"

namespace cairn::models {

// A key of the model section that cannot be used. The program adds the file and line where the key stands.
class ConfigError : public std::invalid_argument {
 public:
  ConfigError(std::string key, const std::string& message) : std::invalid_argument(message), key(std::move(key)) {}
  std::string key;
};

class ConfigReader {
 public:
  explicit ConfigReader(nlohmann::ordered_json config) : config_(std::move(config)) {}

  // The value, or the default where the key is absent or null; the result is remembered for resolved(). Throws ConfigError on a wrong type.
  int64_t integer(const std::string& key, std::optional<int64_t> fallback, int64_t minimum = 1);
  double number(const std::string& key, std::optional<double> fallback);
  bool boolean(const std::string& key, std::optional<bool> fallback);
  std::string text(const std::string& key, std::optional<std::string> fallback);
  std::vector<std::string> texts(const std::string& key, std::vector<std::string> fallback);
  std::vector<int64_t> integers(const std::string& key, std::vector<int64_t> fallback);
  // As integer(), where null has a meaning of its own (`sliding_window: null`).
  std::optional<int64_t> optional_integer(const std::string& key, std::optional<int64_t> fallback);
  std::optional<double> optional_number(const std::string& key, std::optional<double> fallback);

  // RoPE from `rope_parameters` (`layer_type` names a sub-object where a family keeps one for each kind of layer) or from `rope_theta` + `rope_scaling`.
  RopeConfig rope(int64_t rotary_dim, double default_theta, const std::string& layer_type = "");

  // Takes a key note of without using it (bos_token_id, use_cache, ...): it is passed on.
  void ignore(std::initializer_list<const char*> keys);
  // Throws ConfigError: the key is supported with this value only (law 7).
  void require(const std::string& key, const nlohmann::json& only_value, const std::string& reason);

  bool has(const std::string& key) const { return config_.contains(key) && !config_.at(key).is_null(); }
  const nlohmann::ordered_json& raw() const { return config_; }
  // Keys that nothing has asked for, in their order.
  std::vector<std::string> unknown() const;
  // Every key that was asked for.
  std::vector<std::string> known() const { return {known_.begin(), known_.end()}; }
  // config.json to write: what was read, with defaults filled in, and what came along.
  nlohmann::ordered_json resolved() const;

 private:
  const nlohmann::ordered_json* find(const std::string& key, bool may_be_absent);
  nlohmann::ordered_json config_;
  nlohmann::ordered_json resolved_ = nlohmann::ordered_json::object();
  std::set<std::string> known_;
};

}  // namespace cairn::models
