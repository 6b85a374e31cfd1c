// The models that the benchmarks are run at, and how they are timed.
#pragma once

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace cairn::bench {

struct Size {
  const char* name;
  int64_t hidden, layers, heads, kv_heads, ffn, vocabulary, micro_batch, context;
};
inline constexpr Size kSizes[] = {
    {"4m", 256, 6, 8, 4, 688, 256, 8, 256},
    {"14m", 384, 6, 6, 6, 1024, 8192, 8, 256},
    {"135m", 576, 30, 9, 3, 1536, 49152, 2, 256},
};

// Throws std::invalid_argument for a name that is not in the table.
inline const Size& size_named(const std::string& name) {
  for (const Size& size : kSizes) {
    if (name == size.name) return size;
  }
  throw std::invalid_argument(fmt::format("size: found '{}', expected 4m, 14m or 135m", name));
}

// config.json of a Llama of that size, head tied to the embedding.
inline nlohmann::ordered_json llama_config(const Size& s, int64_t context) {
  return {{"model_type", "llama"},
          {"hidden_size", s.hidden},
          {"num_hidden_layers", s.layers},
          {"num_attention_heads", s.heads},
          {"num_key_value_heads", s.kv_heads},
          {"intermediate_size", s.ffn},
          {"vocab_size", s.vocabulary},
          {"max_position_embeddings", context},
          {"tie_word_embeddings", true},
          {"rms_norm_eps", 1e-6}};
}

inline double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

template <class Body>
double seconds_of(Body body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Median seconds of `repeat` calls after `warmup`.
template <class Body>
double timed(Body body, int warmup, int repeat) {
  std::vector<double> times;
  for (int i = -warmup; i < repeat; ++i) {
    const double seconds = seconds_of(body);
    if (i >= 0) times.push_back(seconds);
  }
  return median(times);
}

}  // namespace cairn::bench
