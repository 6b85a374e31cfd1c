// labels: quick
// Families by their config.json alone: what is read, written back, refused, and how weights start. The numbers are
// compared with transformers in tests/oracles/parity_test.py.
#include "models/families/family.h"

#include <gtest/gtest.h>

namespace cairn::models {
namespace {

using Json = nlohmann::ordered_json;

// A small model of each family, typed by a user.
Json small(const std::string& model_type) {
  if (model_type == "gpt2")
    return {{"model_type", "gpt2"}, {"vocab_size", 61}, {"n_embd", 32},
            {"n_layer", 2},         {"n_head", 4},      {"n_positions", 16}};
  Json json{{"model_type", model_type},     {"vocab_size", 61},       {"hidden_size", 32},
            {"intermediate_size", 48},      {"num_hidden_layers", 2}, {"num_attention_heads", 4},
            {"max_position_embeddings", 64}};
  if (model_type != "gpt_neox") json["num_key_value_heads"] = 2;
  if (model_type.starts_with("deepseek") || model_type == "glm_moe_dsa") {
    json.update({{"num_key_value_heads", 4},
                 {"q_lora_rank", 24},
                 {"kv_lora_rank", 16},
                 {"qk_rope_head_dim", 8},
                 {"qk_nope_head_dim", 16},
                 {"v_head_dim", 12},
                 {"first_k_dense_replace", 1},
                 {"n_routed_experts", 4},
                 {"num_experts_per_tok", 2},
                 {"n_group", 2},
                 {"topk_group", 1},
                 {"moe_intermediate_size", 16}});
    if (model_type != "deepseek_v3") json.update({{"index_n_heads", 4}, {"index_head_dim", 16}, {"index_topk", 8}});
  }
  if (model_type == "qwen3_next") {
    json.update({{"num_experts", 0},
                 {"layer_types", {"linear_attention", "full_attention"}},
                 {"head_dim", 16},
                 {"linear_num_key_heads", 2},
                 {"linear_num_value_heads", 4},
                 {"linear_key_head_dim", 8},
                 {"linear_value_head_dim", 8}});
  }
  return json;
}

Json with(Json json, const Json& changes) {
  json.update(changes);
  return json;
}

std::vector<std::string> all_families() {
  std::vector<std::string> names;
  for (const Family* f : families()) names.push_back(f->model_type);
  return names;
}

class EveryFamily : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Families, EveryFamily, ::testing::ValuesIn(all_families()),
                         [](const auto& info) { return info.param; });

TEST_P(EveryFamily, WhatIsWrittenReadsAsTheSame) {
  const DecoderConfig config = decoder_config(small(GetParam()), true);
  const Json written = config_json(config);
  EXPECT_EQ(written.at("architectures").at(0), family(GetParam()).architecture);
  const DecoderConfig again = decoder_config(written, true);
  EXPECT_EQ(config_json(again), written);
  ASSERT_EQ(again.blocks.size(), config.blocks.size());
  for (size_t i = 0; i < config.blocks.size(); ++i) {
    EXPECT_EQ(again.blocks[i].attention.rope, config.blocks[i].attention.rope);
    EXPECT_EQ(again.blocks[i].attention.sliding_window, config.blocks[i].attention.sliding_window);
    EXPECT_EQ(again.blocks[i].attention.head_dim, config.blocks[i].attention.head_dim);
  }
}

TEST_P(EveryFamily, EveryParameterLiesOnDiskOnceAndComesBack) {
  Decoder decoder(decoder_config(small(GetParam()), true));
  decoder.parameters().initialise(7);
  const at::Tensor before = decoder.parameters().flat().clone();
  std::set<std::string> parameters, names;
  std::vector<std::pair<DiskTensor, at::Tensor>> stored;
  for (const DiskTensor& tensor : disk_tensors(decoder.config(), decoder.parameters())) {
    EXPECT_TRUE(names.insert(tensor.name).second) << tensor.name << " twice";
    for (const std::string& name : tensor.parameters) EXPECT_TRUE(parameters.insert(name).second) << name << " twice";
    const at::Tensor value = to_disk(tensor, decoder.config(), decoder.parameters());
    EXPECT_EQ(value.sizes(), at::IntArrayRef(disk_shape(tensor, decoder.parameters())));
    EXPECT_TRUE(value.is_contiguous());
    stored.emplace_back(tensor, value.clone());
  }
  EXPECT_EQ(parameters.size(), decoder.parameters().all().size() + decoder.parameters().buffers().size());
  for (const Parameter& parameter : decoder.parameters().all()) parameter.value().fill_(-1);
  for (const auto& [tensor, value] : stored) from_disk(tensor, value, decoder.config(), decoder.parameters());
  EXPECT_TRUE(at::equal(decoder.parameters().flat(), before));

  const at::Tensor wrong = at::zeros({3, 5});
  try {
    from_disk(stored[0].first, wrong, decoder.config(), decoder.parameters());
    ADD_FAILURE() << "a tensor of another shape was taken";
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find(stored[0].first.name), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("[3, 5]"), std::string::npos) << error.what();
  }
}

TEST_P(EveryFamily, StartsAsTransformersStartsIt) {
  Json json = small(GetParam());
  json[GetParam() == "gpt2" ? "n_embd" : "hidden_size"] = 256;
  json["initializer_range"] = 0.05;
  Decoder decoder(decoder_config(json, true));
  decoder.parameters().initialise(3);
  for (const Parameter& p : decoder.parameters().all()) {
    const at::Tensor value = p.value();
    if (p.role == Role::norm) {
      const bool zero = GetParam() == "gemma3_text" ||
                        (GetParam() == "qwen3_next" && p.name.find("linear_attn.norm") == std::string::npos);
      EXPECT_TRUE(at::equal(value, at::full_like(value, zero ? 0.0 : 1.0))) << p.name;
    } else if (p.name.ends_with("dt_bias")) {
      EXPECT_TRUE(at::equal(value, at::ones_like(value))) << p.name;
    } else if (p.name.ends_with("A_log")) {
      EXPECT_GE(value.exp().min().item<double>(), 0.01) << p.name;
      EXPECT_LE(value.exp().max().item<double>(), 16) << p.name;
      EXPECT_GT(value.std().item<double>(), 0) << p.name;
    } else if (p.name.ends_with("conv1d.weight")) {
      EXPECT_NEAR(value.std().item<double>() / 0.05, 1, 0.2) << p.name;
    } else if (p.name.ends_with("sinks")) {
      EXPECT_GT(value.abs().max().item<float>(), 0) << p.name;
    } else if (p.role == Role::bias) {
      EXPECT_EQ(value.abs().max().item<float>(), 0) << p.name;
    } else {
      const bool residual = p.name.find("o_proj") != std::string::npos || p.name.find("down_proj") != std::string::npos;
      const double std = GetParam() == "gpt2" && residual ? 0.05 / 2 : 0.05;  // sqrt(2 * 2 layers) = 2
      EXPECT_NEAR(value.std().item<double>() / std, 1, 0.05) << p.name;
      const double of_mean = 4 / std::sqrt(static_cast<double>(value.numel()));  // four deviations
      EXPECT_NEAR(value.mean().item<double>() / std, 0, std::max(0.05, of_mean)) << p.name;
    }
  }
}

TEST_P(EveryFamily, UnknownKeysOfAUserAreErrorsThoseOfAFileAreNot) {
  const Json json = with(small(GetParam()), {{"initialiser_range", 0.1}});
  EXPECT_EQ(config_json(decoder_config(json, false)).at("initialiser_range"), 0.1);
  try {
    decoder_config(json, true);
    ADD_FAILURE() << "an unknown key was taken";
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.key, "initialiser_range");
    EXPECT_NE(std::string(error.what()).find("did you mean 'initializer_range'"), std::string::npos) << error.what();
  }
}

TEST(Families, InitialisationByName) {
  auto out_std = [](const Json& init, const std::string& model_type) {
    const DecoderConfig config = decoder_config(with(small(model_type), {{"init", init}}), true);
    return std::pair(config.blocks[0].attention.out_init_std, config.blocks[1].feed_forward.out_init_std);
  };
  EXPECT_EQ(out_std("default", "llama"), std::pair(0.02, 0.02));
  EXPECT_EQ(out_std("scaled", "llama"), std::pair(0.01, 0.01));
  EXPECT_EQ(out_std(Json{{"name", "scaled"}, {"std", 0.4}}, "llama"), std::pair(0.2, 0.2));
  EXPECT_EQ(out_std("default", "gpt2"), std::pair(0.01, 0.01));
  EXPECT_EQ(out_std("scaled", "gpt2"), std::pair(0.01, 0.01));
  EXPECT_EQ(config_json(decoder_config(with(small("llama"), {{"init", {{"std", 0.4}}}}), true)).at("initializer_range"),
            0.4);
  EXPECT_FALSE(config_json(decoder_config(with(small("llama"), {{"init", "scaled"}}), true)).contains("init"));
}

struct Refusal {
  const char* model_type;
  Json changes;
  const char* key;
  const char* says;
};

TEST(Families, UnsupportedSettingsAreRefusedByKey) {
  const Json yarn{{"rope_type", "yarn"}, {"factor", 2.0}};
  const Refusal refusals[] = {
      {"llama", {{"model_type", "lama"}}, "model_type", "did you mean 'llama'"},
      {"llama", {{"hidden_size", "wide"}}, "hidden_size", "expected an integer"},
      {"llama", {{"hidden_size", 0}}, "hidden_size", "at least 1"},
      {"llama", {{"num_attention_heads", 5}}, "num_attention_heads", "divisor"},
      {"llama", {{"num_key_value_heads", 3}}, "num_key_value_heads", "divisor"},
      {"llama", {{"head_dim", 7}}, "rope_parameters", "7"},
      {"llama", {{"hidden_act", "swishy"}}, "hidden_act", "silu"},
      {"llama", {{"rms_norm_eps", 0.0}}, "rms_norm_eps", "above zero"},
      {"llama", {{"attention_dropout", 0.1}}, "attention_dropout", "dropout"},
      {"llama", {{"dropout", 1.0}}, "dropout", "below 1"},
      {"llama", {{"init", "xavier"}}, "init", "scaled"},
      {"llama", {{"init", {{"nam", "scaled"}}}}, "init", "nam"},
      {"llama", {{"rope_theta", -1.0}}, "rope_parameters", "above zero"},
      {"llama", {{"rope_scaling", {{"rope_type", "ntk"}, {"factor", 2.0}}}}, "rope_scaling", "linear"},
      {"llama", {{"rope_scaling", {{"rope_type", "linear"}}}}, "rope_scaling", "factor is missing"},
      {"llama",
       {{"rope_scaling", {{"rope_type", "linear"}, {"factor", 2.0}, {"beta_fast", 3}}}},
       "rope_scaling",
       "beta_fast"},
      {"llama",
       {{"rope_scaling", {{"rope_type", "llama3"}, {"factor", 2.0}}}},
       "rope_scaling",
       "low_freq_factor is missing"},
      {"llama", {{"rope_scaling", yarn}, {"rope_parameters", {{"rope_theta", 1e4}}}}, "rope_scaling", "keep one"},
      {"llama",
       {{"rope_parameters", {{"rope_theta", 1e4}, {"partial_rotary_factor", 0.5}}}},
       "partial_rotary_factor",
       "whole heads"},
      {"llama", {{"partial_rotary_factor", 0.5}}, "partial_rotary_factor", "whole heads"},
      {"llama", {{"quantization_config", {{"bits", 4}}}}, "quantization_config", "quantized"},
      {"llama", {{"is_encoder_decoder", true}}, "is_encoder_decoder", "encoder"},
      {"gpt2", {{"add_cross_attention", true}}, "add_cross_attention", "encoder"},
      {"gpt2", {{"n_head", 5}}, "n_head", "n_embd"},
      {"gpt2", {{"resid_pdrop", 0.1}}, "resid_pdrop", "dropout"},
      {"gpt_neox", {{"rotary_pct", 1.5}}, "rope_parameters", "12 of the 8"},
      {"mistral", {{"layer_types", {"full_attention", "full_attention"}}}, "layer_types", "ignores"},
      {"qwen2", {{"layer_types", {"sliding_attention", "full_attention"}}}, "layer_types", "use_sliding_window"},
      {"qwen2", {{"layer_types", {"full_attention"}}}, "layer_types", "found 1 entries, expected 2"},
      {"qwen3", {{"layer_types", {"full_attention", "linear_attention"}}}, "layer_types", "linear_attention"},
      {"qwen3_next", {{"layer_types", {"full_attention", "sliding_attention"}}}, "layer_types", "linear_attention"},
      {"qwen3_next", {{"layer_types", {"full_attention"}}}, "layer_types", "found 1 entries, expected 2"},
      {"qwen3_next", {{"linear_num_value_heads", 3}}, "linear_num_value_heads", "multiple of linear_num_key_heads"},
      {"qwen3_next", {{"linear_conv_kernel_dim", 9}}, "linear_conv_kernel_dim", "at most 8"},
      {"qwen3_next", {{"hidden_act", "gelu"}}, "hidden_act", "silu"},
      {"qwen3", {{"sliding_window", -4}}, "sliding_window", "positive"},
      {"gemma3_text", {{"attn_logit_softcapping", 50.0}}, "attn_logit_softcapping", "transformers does not apply it"},
      {"gemma3_text", {{"use_bidirectional_attention", true}}, "use_bidirectional_attention", "causal"},
      {"gemma3_text", {{"rope_parameters", {{"rope_theta", 1e4}}}}, "rope_parameters", "sliding_attention"},
      {"gemma3_text", {{"sliding_window", nullptr}}, "sliding_window", "integer"},
      {"olmo3", {{"sliding_window", nullptr}}, "sliding_window", "integer"},
      {"smollm3", {{"no_rope_layers", {1}}}, "no_rope_layers", "expected 2"},
  };
  for (const Refusal& refusal : refusals) {
    const Json json = with(small(refusal.model_type), refusal.changes);
    try {
      decoder_config(json, true);
      ADD_FAILURE() << refusal.model_type << " took " << refusal.changes.dump();
    } catch (const ConfigError& error) {
      EXPECT_EQ(error.key, refusal.key) << refusal.changes.dump() << ": " << error.what();
      EXPECT_NE(std::string(error.what()).find(refusal.says), std::string::npos)
          << refusal.changes.dump() << ": " << error.what();
    }
  }
}

// Rates that come with a published model concern its training alone.
TEST(Families, DropoutRatesOfAFileArePassedOn) {
  const DecoderConfig config = decoder_config(with(small("gpt2"), {{"resid_pdrop", 0.1}, {"attn_pdrop", 0.1}}), false);
  EXPECT_EQ(config.dropout, 0);
  EXPECT_EQ(config_json(config).at("resid_pdrop"), 0.1);
}

TEST(Families, OlmoThreeOfOlderFilesIsWrittenForEachKindOfLayer) {
  const Json scaling{{"rope_type", "yarn"}, {"factor", 8.0}, {"original_max_position_embeddings", 16}};
  const DecoderConfig config = decoder_config(
      with(small("olmo3"),
           {{"num_hidden_layers", 4}, {"sliding_window", 8}, {"rope_theta", 1234.0}, {"rope_scaling", scaling}}),
      true);
  EXPECT_EQ(config.blocks[0].attention.rope->rope_type, "default");
  EXPECT_EQ(config.blocks[0].attention.rope->rope_theta, 1234);
  EXPECT_EQ(config.blocks[0].attention.sliding_window, 8);
  EXPECT_EQ(config.blocks[3].attention.rope->rope_type, "yarn");
  EXPECT_EQ(config.blocks[3].attention.sliding_window, 0);
  const Json written = config_json(config);
  EXPECT_FALSE(written.contains("rope_theta"));
  EXPECT_EQ(written.at("rope_parameters").at("sliding_attention").at("rope_theta"), 1234.0);
  EXPECT_EQ(written.at("rope_parameters").at("full_attention").at("factor"), 8.0);
  EXPECT_EQ(decoder_config(written, true).blocks[3].attention.rope, config.blocks[3].attention.rope);
}

TEST(Rope, DynamicScalingRefusesWhatItDoesNotReach) {
  RopeTable table({.rope_type = "dynamic", .rotary_dim = 8, .factor = 2, .max_position_embeddings = 32});
  EXPECT_GE(table.get(32, at::kCPU).first.size(0), 32);
  EXPECT_THROW(table.get(33, at::kCPU), std::invalid_argument);
}

TEST(Rope, AnOddPartOfAHeadIsRoundedUp) {
  const RopeFrequencies f = rope_frequencies({.rope_theta = 16, .rotary_dim = 5});
  ASSERT_EQ(f.inverse.size(0), 3);
  for (int i = 0; i < 3; ++i) EXPECT_NEAR(f.inverse[i].item<double>(), std::pow(16, -2.0 * i / 5), 1e-7);
}

}  // namespace
}  // namespace cairn::models
