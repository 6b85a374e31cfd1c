// The metadata of a GGUF file -> config.json. Every key under the architecture's name is read or refused: what is
// passed over would change what the model computes.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <optional>
#include <set>

#include "trainer/gguf_model.h"

namespace cairn {
namespace {

using checkpoints::Gguf;
using checkpoints::GgufValue;
using Json = nlohmann::ordered_json;

// float32 -> the number that was written: 1e-05, not 9.999999747378752e-06.
double shortest(double value) { return std::stod(fmt::format("{}", static_cast<float>(value))); }

// Keys below ARCHITECTURE., each asked for once.
class Keys {
 public:
  Keys(const Gguf& file, std::string prefix) : file_(file), prefix_(std::move(prefix) + ".") {}

  const Gguf& file() const { return file_; }

  const GgufValue* find(const std::string& key) {
    known_.insert(prefix_ + key);
    return file_.find(prefix_ + key);
  }

  // One number, or the same for every block.
  std::optional<int64_t> integer(const std::string& key) {
    const GgufValue* value = find(key);
    if (!value) return std::nullopt;
    const auto all = value->integers();
    if (all.empty() || std::any_of(all.begin(), all.end(), [&](int64_t v) { return v != all[0]; }))
      fail(key, "blocks that differ from each other are not supported");
    return all[0];
  }
  int64_t needed(const std::string& key) {
    if (const auto value = integer(key)) return *value;
    fail(key, "is missing");
  }
  std::optional<double> number(const std::string& key) {
    const GgufValue* value = find(key);
    return value ? std::optional(shortest(value->number())) : std::nullopt;
  }
  double needed_number(const std::string& key) {
    if (const auto value = number(key)) return *value;
    fail(key, "is missing");
  }
  std::optional<std::string> text(const std::string& key) {
    const GgufValue* value = find(key);
    return value ? std::optional(value->text()) : std::nullopt;
  }

  // What says nothing that changes the numbers.
  void ignore(std::initializer_list<const char*> keys) {
    for (const char* key : keys) known_.insert(prefix_ + key);
  }

  [[noreturn]] void fail(const std::string& key, const std::string& what) const {
    throw std::runtime_error(fmt::format("{}: {}{}: {}", file_.path().string(), prefix_, key, what));
  }

  void refuse_unknown() const {
    for (const std::string& key : file_.keys()) {
      if (!key.starts_with(prefix_) || known_.contains(key)) continue;
      throw std::runtime_error(
          fmt::format("{}: {}: a setting that is not known here, so the model would not be the one that the file means",
                      file_.path().string(), key));
    }
  }

 private:
  const Gguf& file_;
  std::string prefix_;
  std::set<std::string> known_;
};

bool has(const Keys& keys, const char* name) { return keys.file().tensor(name) != nullptr; }

// ---- RoPE ----

// llama.cpp stores Llama 3.1's scaling as what each frequency is divided by; here the four numbers that it came from
// are found again, and have to give the very factors (Dubey et al. 2024; transformers' rope_type llama3).
struct Llama3 {
  double factor, low, high;
  int64_t original;

  double divisor(double wavelength) const {
    const double old = static_cast<double>(original);
    if (wavelength < old / high) return 1;
    if (wavelength > old / low) return factor;
    const double smooth = (old / wavelength - low) / (high - low);
    return 1 / ((1 - smooth) / factor + smooth);
  }
};

std::optional<Llama3> llama3_of(const std::vector<float>& divisors, double theta) {
  const int64_t half = static_cast<int64_t>(divisors.size());
  const auto wavelength = [&](int64_t i) {
    return 2 * std::numbers::pi * std::pow(theta, static_cast<double>(i) / static_cast<double>(half));
  };
  const auto fits = [&](const Llama3& c) {
    for (int64_t i = 0; i < half; ++i)
      if (!(std::abs(c.divisor(wavelength(i)) - divisors[i]) <= 1e-4 * divisors[i])) return false;
    return true;
  };
  const double factor = shortest(*std::max_element(divisors.begin(), divisors.end()));
  // The published models' numbers; the lengths that occur.
  for (int64_t original = 8192, k = 0; k < 14; original = int64_t{128} << k++) {
    const Llama3 c{factor, 1, 4, original};
    if (fits(c)) return c;
  }
  // (1/d - 1/factor) / (1 - 1/factor) = (original/wavelength - low) / (high - low) is a line in 1/wavelength. One of
  // the three is free: low = 1.
  std::vector<std::pair<double, double>> between;
  for (int64_t i = 0; i < half; ++i)
    if (divisors[i] > 1.0001 && divisors[i] < factor * 0.9999)
      between.emplace_back(1 / wavelength(i), (1 / divisors[i] - 1 / factor) / (1 - 1 / factor));
  if (between.size() < 2) return std::nullopt;
  const auto [x0, y0] = between.front();
  const auto [x1, y1] = between.back();
  const double slope = (y1 - y0) / (x1 - x0), offset = slope * x0 - y0;  // original / (high - 1), 1 / (high - 1)
  const Llama3 c{factor, 1, std::round((1 + 1 / offset) * 1e4) / 1e4, std::llround(slope / offset)};
  return fits(c) ? std::optional(c) : std::nullopt;
}

// rope_scaling, or null.
Json rope_scaling(Keys& keys, double theta, int64_t rotated) {
  keys.ignore({"rope.scaling.finetuned"});
  const std::string type = keys.text("rope.scaling.type").value_or("none");
  const auto factor = keys.number("rope.scaling.factor");
  const auto original = keys.integer("rope.scaling.original_context_length");
  const auto* stored = keys.file().tensor("rope_freqs.weight");
  if (stored) {
    if (type != "none") keys.fail("rope.scaling.type", fmt::format("found '{}' beside rope_freqs.weight", type));
    if (stored->numel() != rotated / 2) {
      throw std::runtime_error(fmt::format("{}: tensor 'rope_freqs.weight' has {} elements, expected {}",
                                           keys.file().path().string(), stored->numel(), rotated / 2));
    }
    std::vector<float> divisors(stored->numel());
    keys.file().read(*stored, divisors.data());
    if (std::all_of(divisors.begin(), divisors.end(), [](float d) { return d == 1; })) return nullptr;
    const auto found = llama3_of(divisors, theta);
    if (!found) {
      throw std::runtime_error(
          fmt::format("{}: tensor 'rope_freqs.weight' holds factors that no llama3 scaling gives; other ones are not "
                      "supported",
                      keys.file().path().string()));
    }
    return {{"rope_type", "llama3"},
            {"factor", found->factor},
            {"low_freq_factor", found->low},
            {"high_freq_factor", found->high},
            {"original_max_position_embeddings", found->original}};
  }
  if (type == "none") {
    if (factor && *factor != 1 && *factor != 0)
      keys.fail("rope.scaling.factor", fmt::format("found {} without a rope.scaling.type", *factor));
    return nullptr;
  }
  if (!factor) keys.fail("rope.scaling.factor", fmt::format("is missing, which scaling '{}' needs", type));
  if (type == "linear") return {{"rope_type", "linear"}, {"factor", *factor}};
  if (type != "yarn") keys.fail("rope.scaling.type", fmt::format("found '{}', expected none, linear or yarn", type));
  Json scaling{{"rope_type", "yarn"}, {"factor", *factor}};
  if (original) scaling["original_max_position_embeddings"] = *original;
  if (const auto fast = keys.number("rope.scaling.yarn_beta_fast")) scaling["beta_fast"] = *fast;
  if (const auto slow = keys.number("rope.scaling.yarn_beta_slow")) scaling["beta_slow"] = *slow;
  return scaling;
}

// ---- families ----

int64_t vocabulary(const Keys& keys) {
  const auto* table = keys.file().tensor("token_embd.weight");
  if (!table || table->shape.size() != 2)
    throw std::runtime_error(fmt::format("{}: tensor 'token_embd.weight' {}: it is no whole model",
                                         keys.file().path().string(), table ? "is no matrix" : "is missing"));
  return table->shape[0];
}

// Llama and those after it.
void gated(Keys& keys, Json& config, const char* activation_key, const char* activation) {
  const int64_t hidden = keys.needed("embedding_length"), heads = keys.needed("attention.head_count");
  if (heads < 1) keys.fail("attention.head_count", fmt::format("found {}, expected a positive number", heads));
  const int64_t head_dim = keys.integer("attention.key_length").value_or(hidden / heads);
  if (const int64_t value = keys.integer("attention.value_length").value_or(head_dim); value != head_dim)
    keys.fail("attention.value_length",
              fmt::format("found {}, expected attention.key_length ({}): heads of two widths are not supported", value,
                          head_dim));
  if (const int64_t rotated = keys.integer("rope.dimension_count").value_or(head_dim); rotated != head_dim)
    keys.fail("rope.dimension_count",
              fmt::format("found {}, expected {}: this family rotates whole heads", rotated, head_dim));
  config["hidden_size"] = hidden;
  config["intermediate_size"] = keys.needed("feed_forward_length");
  config["num_hidden_layers"] = keys.needed("block_count");
  config["num_attention_heads"] = heads;
  config["num_key_value_heads"] = keys.integer("attention.head_count_kv").value_or(heads);
  config["head_dim"] = head_dim;
  config[activation_key] = activation;
  config["max_position_embeddings"] = keys.needed("context_length");
  config["rms_norm_eps"] = keys.needed_number("attention.layer_norm_rms_epsilon");
  const double theta = keys.number("rope.freq_base").value_or(10000);
  config["rope_theta"] = theta;
  config["rope_scaling"] = rope_scaling(keys, theta, head_dim);
  if (const int64_t experts = keys.integer("expert_count").value_or(0); experts > 0)
    keys.fail("expert_count", fmt::format("found {}: mixtures of experts are not read from GGUF", experts));
  if (keys.integer("expert_used_count").value_or(0) > 0) keys.fail("expert_used_count", "without an expert_count");
}

void llama(Keys& keys, Json& config) {
  gated(keys, config, "hidden_act", "silu");
  keys.ignore({"tensor_data_layout"});
  config["attention_bias"] = has(keys, "blk.0.attn_q.bias");
  config["mlp_bias"] = has(keys, "blk.0.ffn_up.bias");
}

void plain_gated(Keys& keys, Json& config) { gated(keys, config, "hidden_act", "silu"); }

void biased_gated(Keys& keys, Json& config) {
  gated(keys, config, "hidden_act", "silu");
  config["attention_bias"] = has(keys, "blk.0.attn_q.bias");
}

// Every fourth block without RoPE, as llama.cpp has it too.
void smollm3(Keys& keys, Json& config) {
  llama(keys, config);
  config["no_rope_layer_interval"] = 4;
}

void gemma3(Keys& keys, Json& config) {
  gated(keys, config, "hidden_activation", "gelu_pytorch_tanh");
  const int64_t layers = config.at("num_hidden_layers"), hidden = config.at("hidden_size"),
                heads = config.at("num_attention_heads");
  // As llama.cpp decides: the model of 27B, which has 62 blocks, divides by the width of a head of the residual stream.
  config["query_pre_attn_scalar"] = layers == 62 ? hidden / heads : config.at("head_dim").get<int64_t>();
  config["sliding_window"] = keys.needed("attention.sliding_window");
  config["rope_local_base_freq"] = keys.number("rope.freq_base_swa").value_or(10000);
  if (const auto cap = keys.number("final_logit_softcapping"); cap && *cap != 0)
    config["final_logit_softcapping"] = *cap;
  std::vector<std::string> types;
  const auto sliding = [&](bool one) { types.emplace_back(one ? "sliding_attention" : "full_attention"); };
  const GgufValue* pattern = keys.find("attention.sliding_window_pattern");
  if (pattern && pattern->type() == checkpoints::GgufType::ARRAY) {
    for (const bool one : pattern->booleans()) sliding(one);
    if (static_cast<int64_t>(types.size()) < layers)
      keys.fail("attention.sliding_window_pattern", fmt::format("has {} entries for {} blocks", types.size(), layers));
    types.resize(layers);
  } else {
    const int64_t every = pattern ? pattern->integer() : 6;
    if (every < 1) keys.fail("attention.sliding_window_pattern", fmt::format("found {}", every));
    for (int64_t i = 0; i < layers; ++i) sliding((i + 1) % every != 0);
  }
  config["layer_types"] = types;
}

void gpt2(Keys& keys, Json& config) {
  config["n_embd"] = keys.needed("embedding_length");
  config["n_layer"] = keys.needed("block_count");
  config["n_head"] = keys.needed("attention.head_count");
  config["n_positions"] = keys.needed("context_length");
  config["n_inner"] = keys.needed("feed_forward_length");
  config["layer_norm_epsilon"] = keys.needed_number("attention.layer_norm_epsilon");
  config["activation_function"] = "gelu_new";
  if (const auto kv = keys.integer("attention.head_count_kv"); kv && *kv != config.at("n_head").get<int64_t>())
    keys.fail("attention.head_count_kv", fmt::format("found {}, expected attention.head_count", *kv));
}

void gptneox(Keys& keys, Json& config) {
  const int64_t hidden = keys.needed("embedding_length"), heads = keys.needed("attention.head_count");
  if (heads < 1 || hidden % heads)
    keys.fail("attention.head_count", fmt::format("found {}, expected a divisor of {}", heads, hidden));
  const int64_t head_dim = hidden / heads, rotated = keys.integer("rope.dimension_count").value_or(head_dim);
  config["hidden_size"] = hidden;
  config["intermediate_size"] = keys.needed("feed_forward_length");
  config["num_hidden_layers"] = keys.needed("block_count");
  config["num_attention_heads"] = heads;
  config["max_position_embeddings"] = keys.needed("context_length");
  config["layer_norm_eps"] = keys.needed_number("attention.layer_norm_epsilon");
  const GgufValue* parallel = keys.find("use_parallel_residual");
  config["use_parallel_residual"] = parallel ? parallel->boolean() : true;
  config["hidden_act"] = "gelu";
  double part = static_cast<double>(rotated) / static_cast<double>(head_dim);
  while (static_cast<int64_t>(static_cast<double>(head_dim) * part) < rotated) part = std::nextafter(part, 2.0);
  config["rotary_pct"] = part;
  const double theta = keys.number("rope.freq_base").value_or(10000);
  config["rotary_emb_base"] = theta;
  config["rope_scaling"] = rope_scaling(keys, theta, rotated);
  config["attention_bias"] = has(keys, "blk.0.attn_qkv.bias");
  if (const auto kv = keys.integer("attention.head_count_kv"); kv && *kv != heads)
    keys.fail("attention.head_count_kv", fmt::format("found {}, expected attention.head_count ({})", *kv, heads));
}

struct Family {
  const char* architecture;
  void (*read)(Keys& keys, Json& config);
};
constexpr Family kFamilies[] = {
    {"gemma3", gemma3},      {"gpt2", gpt2},         {"gptneox", gptneox},    {"llama", llama},
    {"olmo2", biased_gated}, {"qwen2", plain_gated}, {"qwen3", biased_gated}, {"smollm3", smollm3},
};

// Ids of the metadata: several end a text where there is an end of turn besides.
void special_ids(const Gguf& file, Json& config) {
  const auto id = [&](const char* name) -> std::optional<int64_t> {
    const GgufValue* value = file.find(fmt::format("tokenizer.ggml.{}_token_id", name));
    return value ? std::optional(value->integer()) : std::nullopt;
  };
  // null where the file names none: transformers' defaults are ids of published vocabularies.
  for (const char* key : {"bos_token_id", "eos_token_id", "pad_token_id"}) config[key] = nullptr;
  if (const auto bos = id("bos")) config["bos_token_id"] = *bos;
  const auto eos = id("eos");
  std::vector<int64_t> ends;
  for (const auto& end : {eos, id("eot"), id("eom")})
    if (end && std::find(ends.begin(), ends.end(), *end) == ends.end()) ends.push_back(*end);
  if (ends.size() == 1) config["eos_token_id"] = ends[0];
  if (ends.size() > 1) config["eos_token_id"] = ends;
  if (const auto pad = id("padding")) config["pad_token_id"] = *pad;
}

}  // namespace

Json gguf_config(const Gguf& file) {
  const GgufArchitecture& architecture = gguf_architecture(file);
  if (const GgufValue* version = file.find("general.quantization_version"); version && version->integer() != 2)
    throw std::runtime_error(fmt::format("{}: general.quantization_version: found {}, expected 2", file.path().string(),
                                         version->integer()));
  Keys keys(file, architecture.name);
  Json config{{"model_type", architecture.model_type}};
  config["vocab_size"] = vocabulary(keys);
  const auto family = std::find_if(std::begin(kFamilies), std::end(kFamilies), [&](const Family& f) {
    return std::string_view(f.architecture) == architecture.name;
  });
  family->read(keys, config);
  config["tie_word_embeddings"] = file.tensor("output.weight") == nullptr;
  if (const GgufValue* causal = keys.find("attention.causal"); causal && !causal->boolean())
    keys.fail("attention.causal", "found false: the decoder is causal");
  keys.ignore({"vocab_size"});
  keys.refuse_unknown();
  special_ids(file, config);
  return config;
}

}  // namespace cairn
