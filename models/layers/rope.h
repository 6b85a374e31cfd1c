// Tables of rotary position embeddings and the scalings that checkpoints use.
#pragma once

#include <ATen/ATen.h>

#include <memory>
#include <string>
#include <vector>

#include "models/layers/pass.h"

namespace cairn::models {

// Names and meaning are those of Hugging Face's `rope_parameters` (older: `rope_theta` + `rope_scaling`).
struct RopeConfig {
  std::string rope_type = "default";  // default, linear, dynamic, llama3, yarn
  double rope_theta = 10000;
  int64_t rotary_dim = 0;    // R, features of a head that are rotated; an odd number is rounded up, as in transformers
  bool interleaved = false;  // pairs (2i, 2i+1) instead of (i, i + R/2)
  double factor = 1;
  int64_t original_max_position_embeddings = 0;
  double low_freq_factor = 1, high_freq_factor = 4;  // llama3
  double beta_fast = 32, beta_slow = 1;              // yarn
  double attention_factor = 0;                       // yarn; 0 = by the formula
  double mscale = 0, mscale_all_dim = 0;             // yarn (DeepSeek)
  bool truncate = true;                              // yarn: round the correction range outward
  int64_t max_position_embeddings = 0;

  bool operator==(const RopeConfig&) const = default;
};

// Inverse frequencies, float32 [R/2], and the factor on cos and sin. Throws std::invalid_argument on an unknown
// rope_type.
struct RopeFrequencies {
  at::Tensor inverse;
  double attention_factor = 1;
};
RopeFrequencies rope_frequencies(const RopeConfig& config);

// cos and sin for positions below a length that grows on demand; shared by the blocks that have the same config.
class RopeTable {
 public:
  explicit RopeTable(const RopeConfig& config) : config_(config) {}
  // float32 [>= length, R/2] each. Throws std::invalid_argument where the rope_type does not reach that far.
  std::pair<at::Tensor, at::Tensor> get(int64_t length, at::Device device);
  const RopeConfig& config() const { return config_; }

 private:
  RopeConfig config_;
  at::Tensor cos_, sin_;
};

}  // namespace cairn::models
