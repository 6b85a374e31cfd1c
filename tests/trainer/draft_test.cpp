// Speculative decoding by a model's own modules: the text stays, to the bit, with fewer passes of the model.
#include "trainer/draft.h"

#include <gtest/gtest.h>

#include <ATen/CPUGeneratorImpl.h>

#include "models/families/family.h"
#include "trainer/generate.h"

namespace cairn {
namespace {

using nlohmann::ordered_json;

ordered_json json_of(const std::string& model_type, int64_t modules) {
  ordered_json json{{"model_type", model_type},      {"vocab_size", 260},           {"hidden_size", 32},
                    {"intermediate_size", 40},       {"num_hidden_layers", 2},      {"num_attention_heads", 4},
                    {"max_position_embeddings", 96}, {"tie_word_embeddings", false}};
  if (modules) json["num_nextn_predict_layers"] = modules;
  if (model_type == "qwen3_next") {
    json.update({{"num_experts", 6},
                 {"num_experts_per_tok", 2},
                 {"moe_intermediate_size", 12},
                 {"shared_expert_intermediate_size", 12},
                 {"num_key_value_heads", 2},
                 {"head_dim", 16},
                 {"layer_types", {"linear_attention", "full_attention"}},
                 {"linear_num_key_heads", 2},
                 {"linear_num_value_heads", 4},
                 {"linear_key_head_dim", 8},
                 {"linear_value_head_dim", 12}});
    return json;
  }
  json.update({{"n_routed_experts", 6},
               {"num_experts_per_tok", 2},
               {"moe_intermediate_size", 12},
               {"n_group", 1},
               {"topk_group", 1},
               {"first_k_dense_replace", 1}});
  if (model_type == "glm4_moe") {
    json.update({{"num_key_value_heads", 2}, {"head_dim", 8}, {"use_qk_norm", true}});
    return json;
  }
  json.update({{"q_lora_rank", 20},
               {"kv_lora_rank", 12},
               {"qk_nope_head_dim", 10},
               {"qk_rope_head_dim", 6},
               {"v_head_dim", 14}});
  // Fewer keys than the text has tokens.
  if (model_type != "deepseek_v3") json.update({{"index_topk", 9}, {"index_n_heads", 16}, {"index_head_dim", 8}});
  return json;
}

// A model whose modules guess right now and then: the stream of a random one changes little from token to token.
models::Decoder model_of(const ordered_json& json, uint64_t seed) {
  models::Decoder model(models::decoder_config(json, true));
  model.parameters().initialise(seed);
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  for (const auto& p : model.parameters().all())
    if (p.role == models::Role::matrix) p.value().add_(at::randn(p.value().sizes(), generator) * 0.05);
  return model;
}

TEST(Draft, TokensAndLogProbabilitiesAreThoseWithoutDrafts) {
  const auto tokenizer = data::Tokenizer::bytes();
  for (const std::string family : {"deepseek_v3", "deepseek_v32", "glm4_moe", "glm_moe_dsa", "qwen3_next"}) {
    for (const int64_t modules : {1, 3}) {
      if (family == "qwen3_next" && modules > 1) continue;
      int64_t drafted = 0, accepted = 0;
      for (const uint64_t seed : {1, 2, 3}) {
        const models::Decoder model = model_of(json_of(family, modules), seed);
        const Generator generator(model, *tokenizer);
        for (const SamplingOptions& how : {SamplingOptions{.max_tokens = 41, .temperature = 0},
                                           SamplingOptions{.max_tokens = 40, .temperature = 1, .seed = 5},
                                           SamplingOptions{.max_tokens = 17, .temperature = 0.6, .top_p = 0.9}}) {
          SamplingOptions plain = how, drafting = how;
          plain.stop_at_eos = drafting.stop_at_eos = false;
          drafting.draft = "mtp";
          const std::vector<int32_t> prompt =
              seed == 1 ? std::vector<int32_t>{7} : tokenizer->encode("A prompt of 16 b", true);
          const Generation a = generator.run(prompt, plain), b = generator.run(prompt, drafting);
          EXPECT_EQ(a.ids, b.ids) << family << ", modules " << modules << ", temperature " << how.temperature;
          EXPECT_EQ(a.logprobs, b.logprobs) << family << ", modules " << modules;
          EXPECT_EQ(a.text, b.text);
          EXPECT_EQ(a.finish_reason, b.finish_reason);
          EXPECT_EQ(a.drafted, 0);
          EXPECT_GT(b.drafted, 0);
          EXPECT_LE(b.accepted, b.drafted);
          drafted += b.drafted, accepted += b.accepted;
        }
      }
      // Both ways were gone: drafts that stood and drafts that were taken back.
      EXPECT_GT(accepted, 0) << family;
      EXPECT_LT(accepted, drafted) << family;
    }
  }
}

// The end of a text inside a run of drafts.
TEST(Draft, StopsWhereGenerationStops) {
  const auto tokenizer = data::Tokenizer::bytes();
  const models::Decoder model = model_of(json_of("glm4_moe", 2), 2);
  const Generator generator(model, *tokenizer);
  SamplingOptions options{.max_tokens = 60, .temperature = 1, .seed = 5, .stop_at_eos = false};
  const Generation whole = generator.run({7}, options);
  for (const size_t at : {0, 1, 2, 5, 9}) {
    options.stop_at_eos = true, options.end_ids = {whole.ids[at]};
    options.draft = "";
    const Generation plain = generator.run({7}, options);
    options.draft = "mtp";
    const Generation drafted = generator.run({7}, options);
    EXPECT_EQ(plain.ids, drafted.ids);
    EXPECT_EQ(drafted.finish_reason, "eos");
    std::string streamed;
    const Generation again = generator.run({7}, options, [&](std::string_view text) { streamed += text; });
    EXPECT_EQ(streamed, again.text);
  }
  for (const int64_t tokens : {1, 2, 3, 4}) {
    SamplingOptions few{.max_tokens = tokens, .temperature = 0, .stop_at_eos = false};
    few.draft = "mtp";
    EXPECT_EQ(static_cast<int64_t>(generator.run({7, 8}, few).ids.size()), tokens);
  }
}

// Drafts are what the modules give over the whole sequence at once, whatever was drafted and taken back before.
TEST(Draft, ADraftIsWhatTheModulesSayOfTheKnownTokens) {
  const models::Decoder model = model_of(json_of("deepseek_v3", 2), 4);
  const at::NoGradGuard no_grad;
  std::vector<int32_t> known;
  for (int32_t i = 0; i < 20; ++i) known.push_back((i * 37 + 11) % 260);
  MtpDrafter drafter(model, 64);
  const auto greedy = [](const float* logits, int64_t) {
    return static_cast<int32_t>(std::max_element(logits, logits + 260) - logits);
  };
  int64_t seen = 0;
  for (const size_t size : {6, 7, 9, 10, 14, 20}) {
    const std::vector<int32_t> now(known.begin(), known.begin() + size);
    const auto n = static_cast<int64_t>(size) - 1;
    models::Pass pass{.length = n, .positions = at::arange(n, at::kInt)};
    const auto ids = [&](const std::vector<int32_t>& from, int64_t first) {
      at::Tensor x = at::empty({n}, at::kInt);
      std::copy_n(from.begin() + first, n, x.data_ptr<int32_t>());
      return x;
    };
    const at::Tensor trunk = model.hidden(ids(now, 0), pass);
    drafter.saw(trunk.narrow(0, seen, n - seen));
    seen = n;
    const std::vector<int32_t> drafts = drafter.propose(now, 2, greedy);
    ASSERT_EQ(drafts.size(), 2);
    std::vector<int32_t> all = now;
    at::Tensor hidden = trunk;
    for (int64_t m = 0; m < 2; ++m) {
      hidden = model.mtp_hidden(m, hidden, ids(all, m + 1), pass);
      const at::Tensor logits = model.logits(hidden.narrow(0, n - 1, 1), pass);
      EXPECT_EQ(drafts[m], logits.argmax().item<int64_t>()) << size;
      all.push_back(drafts[m]);
    }
  }
}

TEST(Draft, WhatCannotDraftIsRefused) {
  const auto tokenizer = data::Tokenizer::bytes();
  const models::Decoder model = model_of(json_of("glm4_moe", 0), 2);
  SamplingOptions options{.max_tokens = 4};
  options.draft = "mtp";
  EXPECT_THROW(Generator(model, *tokenizer).run({7}, options), std::invalid_argument);
  options.draft = "eagle";
  EXPECT_THROW(check(options), std::invalid_argument);
}

}  // namespace
}  // namespace cairn
