// A decoder as a list of blocks: what every family is turned into.
#pragma once

#include <nlohmann/json.hpp>

#include "models/layers/attention.h"
#include "models/layers/experts.h"
#include "models/layers/feed_forward.h"
#include "models/layers/gated_delta_net.h"
#include "models/layers/mla.h"

namespace cairn::models {

// Where the four norms of a block may stand; an empty name: there is none. The names are the family's own.
struct BlockNorms {
  std::string pre_mixer;         // of the mixer's input
  std::string post_mixer;        // of the mixer's output, before the residual addition
  std::string pre_feed_forward;
  std::string post_feed_forward;
};

struct BlockConfig {
  AttentionConfig attention;
  std::optional<DeltaNetConfig> delta_net;  // takes the place of attention
  FeedForwardConfig feed_forward;
  std::optional<MlaConfig> mla;              // in place of `attention`
  std::optional<IndexerConfig> indexer;      // beside either
  std::optional<ExpertsConfig> experts;      // in place of `feed_forward`
  BlockNorms norms;
  bool parallel = false;  // x + mixer(norm1(x)) + feed_forward(norm2(x)) (GPT-NeoX)
};

struct DecoderConfig {
  std::string model_type;                  // Hugging Face's
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;                 // C
  int64_t max_position_embeddings = 0;
  bool learned_positions = false;          // a table added to the embedding (GPT-2)
  double embedding_scale = 1;              // Gemma: sqrt(C)
  std::vector<BlockConfig> blocks;
  std::vector<BlockConfig> mtp;            // of the modules that predict further tokens (mtp.h), numbered on after `blocks`
  NormConfig norm;                         // of blocks and of the end
  bool tie_word_embeddings = true;
  bool head_bias = false;
  double logit_softcap = 0;
  double init_std = 0.02;                  // embeddings
  double dropout = 0;                      // on embeddings, attention probabilities and what is added to the residual stream

  // config.json as it is written: every key that the family reads, resolved, and those of the source that it passes on.
  nlohmann::ordered_json source;

  // Block `index`, those of the modules after the others, and where its parameters stand.
  int64_t block_count() const { return static_cast<int64_t>(blocks.size() + mtp.size()); }
  const BlockConfig& block(int64_t index) const {
    const auto own = static_cast<int64_t>(blocks.size());
    return index < own ? blocks.at(index) : mtp.at(index - own);
  }
  std::string block_name(int64_t index) const {
    const auto own = static_cast<int64_t>(blocks.size());
    return index < own ? "model.layers." + std::to_string(index) : "mtp.layers." + std::to_string(index - own);
  }
};

}  // namespace cairn::models
