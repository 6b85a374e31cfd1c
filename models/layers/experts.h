// Mixture of experts (Shazeer 2017; Fedus 2021; DeepSeekMoE, Dai 2024): each token goes to the few experts that its
// router prefers.
#pragma once

#include <string>

#include "models/kernels/grouped_linear.h"
#include "models/kernels/router.h"
#include "models/layers/feed_forward.h"

namespace cairn::models {

struct ExpertsConfig {
  // How scores come from the router's logits. softmax: over all experts (Mixtral, Qwen 3). sigmoid: each by itself
  // (DeepSeek-V3, GLM-4.5). softmax_topk: the logits choose and the softmax is over the chosen (gpt-oss).
  enum class Scoring { softmax, sigmoid, softmax_topk };
  // plain: act(gate) * up. clamped: gate and up clamped to `swiglu_limit`, (up + 1) * gate * sigmoid(swiglu_alpha *
  // gate) (gpt-oss).
  enum class Gate { plain, clamped };

  int64_t num_experts = 0;          // E
  int64_t num_experts_per_tok = 0;  // of them a token goes to
  int64_t moe_intermediate_size = 0;
  kernels::Activation activation = kernels::Activation::silu;
  Gate gate = Gate::plain;
  double swiglu_alpha = 1.702;
  double swiglu_limit = 7;
  bool bias = false;  // of the experts' products

  Scoring scoring = Scoring::softmax;
  bool norm_topk_prob = false;       // the weights of the chosen are divided by their sum
  double routed_scaling_factor = 1;  // the weights are multiplied by this
  int64_t n_group = 1;           // experts choose within the best `topk_group` of so many groups, where a group is as
  int64_t topk_group = 1;        // good as the sum of its two best (DeepSeek-V3)
  bool correction_bias = false;  // buffer `gate.e_score_correction_bias` is added to the scores for the choice alone
  bool router_bias = false;      // of the router's product

  int64_t shared_intermediate_size = 0;        // of the feed-forward that every token goes through; 0: none
  std::string shared_name = "shared_experts";  // its name beside `experts`
  bool shared_gate = false;                    // times sigmoid(`shared_expert_gate` x) (Qwen3-Next)

  // Load balancing loss of Mixtral and Qwen 3 (transformers' load_balancing_loss_func): the counts of all layers of the
  // global batch are pooled. 0: off.
  double router_aux_loss_coef = 0;

  std::string gate_name = "gate";  // of the router, beside `experts`
  double init_std = 0.02;
  double out_init_std = 0.02;
};

class Experts : public FeedForwardLayer {
 public:
  // `name`: "model.layers.3.mlp"; adds name.gate.weight, name.experts.N.{gate_proj,up_proj,down_proj}.weight, and what
  // else the config has. Throws std::invalid_argument where more experts are to be chosen than there are.
  Experts(Parameters& parameters, const std::string& name, int64_t hidden_size, const ExpertsConfig& config,
          int64_t block);

  // x [N, C], already normalised -> [N, C].
  at::Tensor forward(const at::Tensor& x, const Pass& pass) const override;

  const ExpertsConfig& config() const { return config_; }

 private:
  // Gradient of the normalised scores and of lse^2 that the auxiliary losses of this pass have.
  kernels::RouterAux auxiliary(const kernels::Routing& routing, const Pass& pass) const;
  void measure(const kernels::Routing& routing, const kernels::RouterAux& aux, const Pass& pass) const;

  ExpertsConfig config_;
  int64_t block_ = 0;
  kernels::RouterOptions options_;
  kernels::ExpertGate gate_kind_;
  Linear gate_;
  at::Tensor correction_bias_;  // float32 [E] or undefined
  kernels::ExpertWeights weights_;
  std::optional<FeedForward> shared_;
  Linear shared_gate_;
};

}  // namespace cairn::models
