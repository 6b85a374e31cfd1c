// Multi-head, multi-query and grouped-query attention (Vaswani 2017, Shazeer 2019, Ainslie 2023).
#pragma once

#include <optional>

#include "models/layers/lightning_indexer.h"
#include "models/layers/linear.h"
#include "models/layers/mixer.h"
#include "models/layers/norm.h"
#include "models/layers/rope.h"

namespace cairn::models {

struct AttentionConfig {
  enum class QkNorm {
    none,
    head,
    full
  };  // RMSNorm of q and k over each head (Qwen3, Gemma 3), or over all heads at once (OLMo 2)
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
  bool qkv_bias = false;
  bool out_bias = false;
  QkNorm qk_norm = QkNorm::none;
  bool output_gate = false;  // the result times sigmoid of a gate: q_proj holds [q | gate] head by head (Qwen3-Next)
  NormConfig norm;           // of q and k
  std::optional<RopeConfig> rope;  // none: no position embedding in this block
  int64_t sliding_window = 0;      // 0: full
  double scale = 0;                // 0: head_dim^-1/2
  double softcap = 0;
  bool sinks = false;  // a learned score a head that takes its share of the softmax and gives nothing (gpt-oss)
  double init_std = 0.02;
  double out_init_std = 0.02;
};

class Attention : public Mixer {
 public:
  // `name`: "model.layers.3.self_attn". `indexer`: chooses keys where the pass asks for it.
  Attention(Parameters& parameters, const std::string& name, int64_t hidden_size, const AttentionConfig& config,
            const std::optional<IndexerConfig>& indexer, int64_t block, std::shared_ptr<RopeTable> rope);

  // x [N, C], already normalised -> [N, C].
  at::Tensor forward(const at::Tensor& x, const Pass& pass) const override;
  // Keys and values, [capacity, K, D] each; after them the indexer's keys.
  LayerCache make_cache(int64_t capacity, const at::TensorOptions& options) const override;
  // Not with an indexer, whose keys have no pages.
  kernels::KeyValuePages make_pages(int64_t pages, int64_t page_size, const at::TensorOptions& options) const override;
  const AttentionConfig& config() const { return config_; }

 private:
  at::Tensor indexed(const at::Tensor& x, at::Tensor q, at::Tensor k, const at::Tensor& v, const Rotation& rotation,
                     const kernels::AttentionOptions& options, const Pass& pass) const;

  AttentionConfig config_;
  int64_t block_ = 0;
  std::shared_ptr<RopeTable> rope_;
  Linear qkv_proj_, o_proj_;
  Norm q_norm_, k_norm_;
  at::Tensor sinks_;  // [H] or undefined
  std::optional<LightningIndexer> indexer_;
};

}  // namespace cairn::models
