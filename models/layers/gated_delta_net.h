// Gated DeltaNet as Qwen3-Next has it (Yang et al. 2024; Qwen team 2025): projections, a short causal convolution, the
// gated delta rule on L2-normalised queries and keys, a gated norm of each head, a projection back.
#pragma once

#include "models/layers/linear.h"
#include "models/layers/mixer.h"

namespace cairn::models {

struct DeltaNetConfig {
  int64_t num_key_heads = 0;    // Hk
  int64_t num_value_heads = 0;  // Hv, a multiple of Hk: value head h reads key head h / (Hv / Hk)
  int64_t key_head_dim = 0;     // Dk
  int64_t value_head_dim = 0;   // Dv
  int64_t conv_kernel = 4;
  double norm_eps = 1e-6;
  double init_std = 0.02;
  double out_init_std = 0.02;

  int64_t key_width() const { return num_key_heads * key_head_dim; }
  int64_t value_width() const { return num_value_heads * value_head_dim; }
  int64_t conv_width() const { return 2 * key_width() + value_width(); }
  // Columns of the fused product: for each key head its q, k, v and z, then for each key head its b and a.
  int64_t qkvz_width() const { return 2 * key_width() + 2 * value_width(); }
  int64_t product_width() const { return qkvz_width() + 2 * num_value_heads; }
};

class GatedDeltaNet : public Mixer {
 public:
  // `name`: "model.layers.3.linear_attn".
  GatedDeltaNet(Parameters& parameters, const std::string& name, int64_t hidden_size, const DeltaNetConfig& config,
                int64_t block);

  // x [N, C], already normalised -> [N, C]. Documents of pass.segments know nothing of each other.
  at::Tensor forward(const at::Tensor& x, const Pass& pass) const override;
  // states: the rows of the product that the convolution still sees [conv_kernel - 1, product], and the state of the
  // delta rule [Hv, Dk, Dv] in float32. Their size does not depend on the capacity.
  LayerCache make_cache(int64_t capacity, const at::TensorOptions& options) const override;
  const DeltaNetConfig& config() const { return config_; }

 private:
  DeltaNetConfig config_;
  int64_t block_ = 0;
  Linear in_proj_, out_proj_;  // in_proj_ holds in_proj_qkvz and in_proj_ba in one product
  at::Tensor conv_weight_;     // [2 Hk Dk + Hv Dv, 1, conv_kernel]
  at::Tensor A_log_, dt_bias_, norm_weight_;
};

}  // namespace cairn::models
