// What the family files share: their declarations for the table, and readings that most of them need.
#pragma once

#include "models/families/family.h"

namespace cairn::models {

extern const Family deepseek_v3_family, deepseek_v32_family, gemma3_text_family, glm4_moe_family, glm_moe_dsa_family,
    gpt2_family, gpt_neox_family, gpt_oss_family, llama_dsa_family, llama_family, mistral_family, mixtral_family,
    olmo2_family, olmo3_family, qwen2_family, qwen3_dsa_family, qwen3_family, qwen3_moe_family, qwen3_next_family, smollm3_family;

// Hugging Face's defaults of a family whose keys are Llama's.
struct Defaults {
  int64_t vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads;
  int64_t num_key_value_heads = 0;  // 0: as many as num_attention_heads
  int64_t head_dim = 0;             // 0: hidden_size / num_attention_heads
  int64_t max_position_embeddings = 2048;
  double rms_norm_eps = 1e-6;
  bool tie_word_embeddings = false;
  const char* activation_key = "hidden_act";
  const char* activation = "silu";
  bool heads_divide = false;  // transformers refuses a hidden_size that the heads do not divide, head_dim or not
};

// A decoder of Llama's shape from the keys that these families share: equal blocks, RMSNorm, gated feed-forward, no
// biases, no RoPE yet, norms before mixer and feed-forward. The family changes what is its own.
DecoderConfig gated_decoder(ConfigReader& reader, const Defaults& defaults);

// hidden_size / heads. Throws ConfigError(`heads_key`) where it does not divide.
int64_t head_width(int64_t hidden_size, int64_t heads, const char* heads_key = "num_attention_heads",
                   const char* hidden_key = "hidden_size");

// The activation under `key`; throws ConfigError naming the value and the ones there are.
kernels::Activation activation(ConfigReader& reader, const std::string& key, const std::string& fallback);

// Which of the blocks attend inside a sliding window: `layer_types`, or `fallback(block)` where the config has none.
// Writes `layer_types`. Throws ConfigError on another kind of layer or a list of another length.
std::vector<bool> sliding_layers(ConfigReader& reader, int64_t layers, const std::function<bool(int64_t)>& fallback);

// Qwen's keys: a window of `sliding_window` from block `max_window_layers` on (or by layer_types), if
// `use_sliding_window`.
void qwen_windows(ConfigReader& reader, DecoderConfig& config);

// Gemma 3 and OLMo 3: rope_parameters holds one object for the layers with a sliding window and one for the others.
struct LayeredRope {
  double full_theta, sliding_theta;
  const char* sliding_theta_key;  // older key
};
void layered_rope(ConfigReader& reader, DecoderConfig& config, const std::vector<bool>& sliding,
                  const LayeredRope& keys);

// For families whose names on disk are the decoder's own.
inline std::string same_name(const std::string& parameter) { return parameter; }

// `name` with every pair's first part replaced by its second, in order.
std::string replaced(std::string name, std::initializer_list<std::pair<const char*, const char*>> pairs);

// Tensors on disk where q, k and v are one: `rename` maps q_proj to the fused name; `layout` tells how a tensor lies by
// its name on disk.
std::vector<DiskTensor> fused_qkv(const Parameters& parameters, std::string (*rename)(const std::string&),
                                  DiskLayout (*layout)(const std::string& disk_name));

// ---- modules that predict further tokens

// num_nextn_predict_layers: so many modules, each with a block like the decoder's last one. Call it when the blocks
// are done.
void mtp_modules(ConfigReader& reader, DecoderConfig& config);

// DeepSeek's names: module m is model.layers.{num_hidden_layers + m}.
std::string numbered_on(const std::string& parameter, const DecoderConfig& config);

// ---- mixtures of experts

// The key under which a config holds the number of experts: the family's `own`, or transformers 5's num_local_experts.
const char* experts_key(const ConfigReader& reader, const char* own);

// Activation and initialisation of the decoder's feed-forward.
ExpertsConfig experts_like(const DecoderConfig& config);

// router_aux_loss_coef, which counts where output_router_logits is true, as in transformers; or where a user typed it.
void router_aux_loss(ConfigReader& reader, ExpertsConfig& experts);

// Throws ConfigError where more experts are to be chosen than there are, or groups do not come out even.
// `experts_name`: the key of their number.
void check_experts(const ExpertsConfig& experts, const char* experts_name);

// DeepSeek-V3's keys: sigmoid scores with a correction bias, groups, shared experts. Checked.
struct DeepseekExperts {
  int64_t num_experts, num_experts_per_tok, moe_intermediate_size;
  int64_t n_shared_experts = 1;
  double routed_scaling_factor = 1;
  int64_t n_group = 1, topk_group = 1;
};
ExpertsConfig deepseek_experts(ConfigReader& reader, const DecoderConfig& config, const DeepseekExperts& defaults);

}  // namespace cairn::models
