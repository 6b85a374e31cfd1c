// Multi-head latent attention (DeepSeek-V2, 2024, section 2.1): queries, and keys and values together, pass through
// latents of low rank; position enters through a part of every query and one key that all heads share.
//
//   c_q = norm(W_qa x)                 [N, q_lora_rank]      q = W_qb c_q, per head [q_nope | RoPE(q_rope)]
//   c_kv = norm(first part of W_kva x) [N, kv_lora_rank]     k_rope = RoPE(last part of W_kva x)  [N, R]
//   k_nope = W_uk c_kv, v = W_uv c_kv, per head (both are rows of kv_b_proj)
//
// Expanded form (training and prefill over all keys): k = [k_nope | k_rope] and v are made for every head.
// Absorbed form (decoding, and attention over a chosen set of keys): q_nope · W_uk c_kv = (W_uk^T q_nope) · c_kv, so
// the rows [c_kv | k_rope] are the keys of all heads at once, their first part the values, and W_uv is applied to what
// attention gives. The cache holds these rows alone.
#pragma once

#include "models/layers/attend.h"
#include "models/layers/lightning_indexer.h"
#include "models/layers/linear.h"
#include "models/layers/mixer.h"
#include "models/layers/norm.h"
#include "models/layers/rotate.h"

namespace cairn::models {

struct MlaConfig {
  int64_t num_attention_heads = 0;  // H
  int64_t q_lora_rank = 0;          // 0: queries straight from x (q_proj)
  int64_t kv_lora_rank = 0;         // r
  int64_t qk_nope_head_dim = 0;     // features of a head without position
  int64_t qk_rope_head_dim = 0;     // R, with position
  int64_t v_head_dim = 0;           // E
  bool bias = false;                // of q_a_proj, kv_a_proj_with_mqa and o_proj
  NormConfig norm{.eps = 1e-6};     // of the latents. NOTE: 1e-6 whatever rms_norm_eps says
  RopeConfig rope;                  // of R features
  double scale = 0;                 // 0: (nope + R)^-1/2
  double init_std = 0.02;
  double out_init_std = 0.02;

  int64_t qk_head_dim() const { return qk_nope_head_dim + qk_rope_head_dim; }
};

class Mla : public Mixer {
 public:
  // `name`: "model.layers.3.self_attn". `indexer`: chooses keys where the pass asks for it.
  Mla(Parameters& parameters, const std::string& name, int64_t hidden_size, const MlaConfig& config,
      const std::optional<IndexerConfig>& indexer, int64_t block, std::shared_ptr<RopeTable> rope);

  at::Tensor forward(const at::Tensor& x, const Pass& pass) const override;
  LayerCache make_cache(int64_t capacity, const at::TensorOptions& options) const override;

 private:
  struct Latents {
    at::Tensor query;  // c_q [N, q_lora_rank], or x
    at::Tensor kv;     // c_kv [N, r]
    at::Tensor key;    // k_rope [N, 1, R], rotated
  };
  Latents latents(const at::Tensor& x, const Rotation& rotation, const Pass& pass) const;
  std::pair<at::Tensor, at::Tensor> expanded(const Latents& c, const Pass& pass) const;  // k [N, H, D], v [N, H, E]
  at::Tensor absorbed(const at::Tensor& q, const Pass& pass) const;                      // [N, H, r + R]
  at::Tensor released(const at::Tensor& out, const Pass& pass) const;                    // [N, H r] -> [N, H E]
  at::Tensor up(int64_t first, int64_t rows) const;  // rows of every head of kv_b_proj, [H, rows, r]

  MlaConfig config_;
  int64_t block_;
  std::shared_ptr<RopeTable> rope_;
  Linear a_proj_;  // q_a_proj and kv_a_proj_with_mqa in one product, or the latter alone
  Linear q_proj_, kv_b_proj_, o_proj_;
  Norm q_norm_, kv_norm_;
  std::optional<LightningIndexer> indexer_;
};

}  // namespace cairn::models
