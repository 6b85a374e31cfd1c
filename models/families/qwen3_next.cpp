// Qwen3-Next (Qwen team 2025): three blocks of Gated DeltaNet to one of attention, whose output has a gate and whose
// heads are rotated by a quarter; norms stored around zero; experts with a gated shared one, or dense feed-forwards.
#include "models/families/families.h"
#include "models/kernels/causal_conv.h"

namespace cairn::models {
namespace {

// Which blocks are linear: `layer_types`, or all but every `full_attention_interval`-th.
std::vector<bool> linear_layers(ConfigReader& reader, int64_t layers) {
  const int64_t interval = reader.integer("full_attention_interval", 4);
  std::vector<std::string> types;
  for (int64_t i = 0; i < layers; ++i) types.push_back((i + 1) % interval ? "linear_attention" : "full_attention");
  types = reader.texts("layer_types", types);
  if (static_cast<int64_t>(types.size()) != layers) {
    throw ConfigError("layer_types",
                      fmt::format("found {} entries, expected {} (num_hidden_layers)", types.size(), layers));
  }
  std::vector<bool> linear;
  for (const std::string& type : types) {
    if (type != "linear_attention" && type != "full_attention")
      throw ConfigError("layer_types", fmt::format("found '{}', expected full_attention or linear_attention", type));
    linear.push_back(type == "linear_attention");
  }
  return linear;
}

DeltaNetConfig delta_net(ConfigReader& reader, const DecoderConfig& config) {
  DeltaNetConfig net;
  net.num_key_heads = reader.integer("linear_num_key_heads", 16);
  net.num_value_heads = reader.integer("linear_num_value_heads", 32);
  net.key_head_dim = reader.integer("linear_key_head_dim", 128);
  net.value_head_dim = reader.integer("linear_value_head_dim", 128);
  net.conv_kernel = reader.integer("linear_conv_kernel_dim", 4);
  net.norm_eps = config.norm.eps;
  net.init_std = net.out_init_std = config.init_std;
  if (net.num_value_heads % net.num_key_heads) {
    throw ConfigError("linear_num_value_heads",
                      fmt::format("found {}, expected a multiple of linear_num_key_heads ({})", net.num_value_heads,
                                  net.num_key_heads));
  }
  if (net.conv_kernel > kernels::kMaxTaps) {
    throw ConfigError("linear_conv_kernel_dim",
                      fmt::format("found {}, expected at most {}", net.conv_kernel, kernels::kMaxTaps));
  }
  return net;
}

DecoderConfig from_config(ConfigReader& reader) {
  DecoderConfig config = gated_decoder(reader, {.vocab_size = 151936,
                                                .hidden_size = 2048,
                                                .intermediate_size = 5632,
                                                .num_hidden_layers = 48,
                                                .num_attention_heads = 16,
                                                .num_key_value_heads = 2,
                                                .head_dim = 256,
                                                .max_position_embeddings = 32768});
  config.norm.offset = 1;
  const int64_t layers = static_cast<int64_t>(config.blocks.size());
  const bool attention_bias = reader.boolean("attention_bias", false);
  const RopeConfig rope = reader.rope(config.blocks[0].attention.head_dim,
                                      {.partial_key = "partial_rotary_factor", .default_partial = 0.25});
  const std::vector<bool> linear = linear_layers(reader, layers);
  const DeltaNetConfig net = delta_net(reader, config);
  const auto dense = reader.integers("mlp_only_layers", {});
  const int64_t step = reader.integer("decoder_sparse_step", 1);
  ExpertsConfig experts = experts_like(config);
  experts.num_experts = reader.integer(experts_key(reader, "num_experts"), 512, 0);
  experts.num_experts_per_tok = reader.integer("num_experts_per_tok", 10);
  experts.moe_intermediate_size = reader.integer("moe_intermediate_size", 512);
  experts.norm_topk_prob = reader.boolean("norm_topk_prob", true);
  experts.shared_intermediate_size = reader.integer("shared_expert_intermediate_size", 512);
  experts.shared_name = "shared_expert";
  experts.shared_gate = true;
  router_aux_loss(reader, experts);
  if (experts.num_experts > 0) check_experts(experts, "num_experts");

  for (int64_t i = 0; i < layers; ++i) {
    BlockConfig& block = config.blocks[i];
    block.attention.qk_norm = AttentionConfig::QkNorm::head;
    block.attention.norm = config.norm;
    block.attention.output_gate = true;
    block.attention.qkv_bias = block.attention.out_bias = attention_bias;
    block.attention.rope = rope;
    if (linear[i]) {
      if (block.feed_forward.activation != kernels::Activation::silu)
        throw ConfigError("hidden_act", "the convolution in front of a linear layer has silu alone: expected silu");
      block.delta_net = net;
    }
    const bool sparse =
        experts.num_experts > 0 && (i + 1) % step == 0 && std::find(dense.begin(), dense.end(), i) == dense.end();
    if (sparse) block.experts = experts;
  }
  mtp_modules(reader, config);
  if (config.mtp.size() > 1) {
    throw ConfigError("num_nextn_predict_layers",
                      fmt::format("found {}, expected 0 or 1: the family's files have one mtp.fc", config.mtp.size()));
  }
  return config;
}

// What stands around the block is named apart from it, under `mtp`.
std::string mtp_name(const std::string& parameter, const DecoderConfig&) {
  return replaced(parameter, {{"layers.0.eh_proj.", "fc."},
                              {"layers.0.enorm.", "pre_fc_norm_embedding."},
                              {"layers.0.hnorm.", "pre_fc_norm_hidden."},
                              {"layers.0.shared_head.norm.", "norm."}});
}

}  // namespace

const Family qwen3_next_family{
    "qwen3_next", "Qwen3NextForCausalLM", "model.", from_config, same_name, nullptr, nullptr, "mtp.", mtp_name};

}  // namespace cairn::models
