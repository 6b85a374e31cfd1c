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

// " (did you mean 'x'?)" for the candidate that is nearest by edit distance; "" where none is near.
std::string did_you_mean(const std::string& word, const std::vector<std::string>& candidates);

// Where a family keeps the settings of RoPE. All of them may write `rope_parameters` (transformers 5); the other keys
// are older.
struct RopeKeys {
  double default_theta = 10000;
  std::string theta_key = "rope_theta";
  std::string layer_type;       // the object inside rope_parameters, for families with one for each kind of layer
  bool scaling_applies = true;  // does the older `rope_scaling` speak about these layers
  std::string partial_key;      // older key of partial_rotary_factor; "": the family rotates whole heads
  double default_partial = 1;   // partial_rotary_factor
};

class ConfigReader {
 public:
  // `strict`: the user typed these keys, so what would have no effect is an error.
  explicit ConfigReader(nlohmann::ordered_json config, bool strict = false)
      : config_(std::move(config)), strict_(strict) {}

  // The value, or the default where the key is absent or null; the result is remembered for resolved(). Throws
  // ConfigError on a wrong type or a value below the minimum.
  int64_t integer(const std::string& key, std::optional<int64_t> fallback, int64_t minimum = 1);
  double number(const std::string& key, std::optional<double> fallback);
  double positive(const std::string& key, std::optional<double> fallback);  // above zero
  bool boolean(const std::string& key, std::optional<bool> fallback);
  std::string text(const std::string& key, std::optional<std::string> fallback);
  std::vector<std::string> texts(const std::string& key, std::vector<std::string> fallback);
  std::vector<int64_t> integers(const std::string& key, std::vector<int64_t> fallback);
  // The same where null has a meaning of its own (`sliding_window: null`); a number has to be positive.
  std::optional<int64_t> optional_integer(const std::string& key, std::optional<int64_t> fallback);
  std::optional<double> optional_number(const std::string& key, std::optional<double> fallback);

  // RoPE of heads of width `head_dim`, from `rope_parameters` or from `rope_theta` + `rope_scaling`. Throws ConfigError
  // on a type or a key that is not supported, and where the type lacks a key that it needs.
  RopeConfig rope(int64_t head_dim, const RopeKeys& keys = {});

  // Hugging Face's own dropout rates. Cairn has one rate, `dropout`: a rate typed here is an error, one that came with
  // a model is passed on.
  void dropout_rates(std::initializer_list<const char*> keys);
  // Takes note of a key without using it: it is passed on.
  void ignore(std::initializer_list<const char*> keys);
  // Throws ConfigError: the key is supported with this value only (law 7).
  void require(const std::string& key, const nlohmann::json& only_value, const std::string& reason);
  // Writes a key in resolved() that is not simply what was read; null values of `drop` leave no trace.
  void write(const std::string& key, nlohmann::ordered_json value) { resolved_[key] = std::move(value); }
  void drop(const std::string& key) { dropped_.insert(key); }

  bool has(const std::string& key) const { return config_.contains(key) && !config_.at(key).is_null(); }
  bool strict() const { return strict_; }
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
  bool strict_;
  nlohmann::ordered_json resolved_ = nlohmann::ordered_json::object();
  std::set<std::string> known_, dropped_;
};

}  // namespace cairn::models
