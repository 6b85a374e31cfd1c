// gpt-oss (OpenAI 2025): experts with clamped gates and biases, a learned sink in attention's softmax, every other
// block with a sliding window. On disk the experts are one tensor, transposed, gate and up interleaved.
#include "models/families/families.h"

namespace cairn::models {
namespace {

// YaRN of the published models, where a config says nothing of RoPE.
RopeConfig published_rope(ConfigReader& reader, int64_t head_dim) {
  if (reader.has("rope_parameters") || reader.has("rope_scaling"))
    return reader.rope(head_dim, {.default_theta = 150000});
  RopeConfig rope;
  rope.rope_type = "yarn";
  rope.rope_theta = reader.positive("rope_theta", 150000);
  reader.ignore({"rope_parameters", "rope_scaling"});
  rope.rotary_dim = head_dim;
  rope.max_position_embeddings = reader.raw().value("max_position_embeddings", int64_t{131072});
  rope.factor = 32, rope.beta_fast = 32, rope.beta_slow = 1, rope.truncate = false;
  rope.original_max_position_embeddings = 4096;
  reader.write("rope_parameters", {{"rope_type", "yarn"},
                                   {"rope_theta", rope.rope_theta},
                                   {"factor", 32.0},
                                   {"beta_fast", 32.0},
                                   {"beta_slow", 1.0},
                                   {"truncate", false},
                                   {"original_max_position_embeddings", 4096}});
  reader.drop("rope_theta");
  return rope;
}

DecoderConfig from_config(ConfigReader& reader) {
  DecoderConfig config = gated_decoder(reader, {.vocab_size = 201088,
                                                .hidden_size = 2880,
                                                .intermediate_size = 2880,
                                                .num_hidden_layers = 36,
                                                .num_attention_heads = 64,
                                                .num_key_value_heads = 8,
                                                .head_dim = 64,
                                                .max_position_embeddings = 131072,
                                                .rms_norm_eps = 1e-5});
  reader.require("hidden_act", "silu", "the experts' gate is fixed");
  const bool attention_bias = reader.boolean("attention_bias", true);
  const std::optional<int64_t> window = reader.optional_integer("sliding_window", 128);
  const auto sliding = sliding_layers(reader, config.blocks.size(), [](int64_t i) { return i % 2 == 0; });
  const RopeConfig rope = published_rope(reader, config.blocks[0].attention.head_dim);
  ExpertsConfig experts = experts_like(config);
  experts.num_experts = reader.integer(experts_key(reader, "num_local_experts"), 128);
  experts.num_experts_per_tok = reader.integer("num_experts_per_tok", 4);
  experts.moe_intermediate_size = config.blocks[0].feed_forward.intermediate_size;
  experts.scoring = ExpertsConfig::Scoring::softmax_topk;
  experts.gate = ExpertsConfig::Gate::clamped;
  experts.swiglu_alpha = reader.positive("swiglu_alpha", 1.702);
  experts.swiglu_limit = reader.positive("swiglu_limit", 7.0);
  experts.bias = experts.router_bias = true;
  experts.gate_name = "router";
  router_aux_loss(reader, experts);
  check_experts(experts, "num_local_experts");
  // Say again what other keys say.
  reader.ignore({"experts_per_token", "initial_context_length"});
  for (size_t i = 0; i < config.blocks.size(); ++i) {
    BlockConfig& block = config.blocks[i];
    block.attention.qkv_bias = block.attention.out_bias = attention_bias;
    block.attention.sinks = true;
    block.attention.rope = rope;
    block.experts = experts;
    if (sliding[i]) block.attention.sliding_window = window.value_or(0);
  }
  return config;
}

std::string rename(const std::string& parameter) {
  const size_t at = parameter.find(".experts.");
  if (at == std::string::npos) return parameter;
  // model.layers.0.mlp.experts.5.gate_proj.weight -> model.layers.0.mlp.experts.gate_up_proj
  const bool down = parameter.find(".down_proj.") != std::string::npos;
  return parameter.substr(0, at) + ".experts." + (down ? "down_proj" : "gate_up_proj") +
         (parameter.ends_with(".bias") ? "_bias" : "");
}

std::vector<DiskTensor> disk(const DecoderConfig&, const Parameters& parameters) {
  return fused_qkv(parameters, rename, [](const std::string& name) {
    if (name.ends_with(".experts.gate_up_proj")) return DiskLayout::experts_gate_up;
    if (name.ends_with(".experts.gate_up_proj_bias")) return DiskLayout::experts_gate_up_bias;
    if (name.ends_with(".experts.down_proj")) return DiskLayout::experts_down;
    if (name.ends_with(".experts.down_proj_bias")) return DiskLayout::experts_down_bias;
    return DiskLayout::plain;
  });
}

}  // namespace

const Family gpt_oss_family{"gpt_oss", "GptOssForCausalLM", "model.", from_config, rename, disk};

}  // namespace cairn::models
