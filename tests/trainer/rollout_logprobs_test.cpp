// labels: quick
// Rollouts of every kind of decoder: their log-probabilities are the trainer's.
#include "tests/trainer/rollout_fixture.h"

namespace cairn::rollout {
namespace {

Json small(const std::string& model_type, const Json& changes = {}) {
  if (model_type == "gpt2")
    return {{"model_type", "gpt2"}, {"vocab_size", 257}, {"n_embd", 32},
            {"n_layer", 2},         {"n_head", 4},       {"n_positions", 256}};
  Json json{{"model_type", model_type}, {"vocab_size", 257},
            {"hidden_size", 32},        {"intermediate_size", 48},
            {"num_hidden_layers", 2},   {"num_attention_heads", 4},
            {"num_key_value_heads", 2}, {"max_position_embeddings", 256}};
  if (model_type == "gpt_neox") json.erase("num_key_value_heads");
  if (!changes.is_null()) json.update(changes);
  return json;
}

Json latent(const std::string& model_type) {
  return small(model_type, {{"num_key_value_heads", 4},
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
}

const Json kLinear{{"num_experts", 0},          {"head_dim", 16},
                   {"linear_num_key_heads", 2}, {"linear_num_value_heads", 4},
                   {"linear_key_head_dim", 8},  {"linear_value_head_dim", 8}};

Json hybrid(const std::vector<std::string>& types) {
  Json json = small("qwen3_next", kLinear);
  json["layer_types"] = types;
  return json;
}

const std::vector<std::pair<std::string, Json>>& pageable() {
  static const std::vector<std::pair<std::string, Json>> all = {
      {"llama", small("llama", {{"head_dim", 20}})},
      {"llama, its RoPE stretched",
       small("llama", {{"rope_parameters", {{"rope_type", "linear"}, {"rope_theta", 10000.0}, {"factor", 4.0}}}})},
      {"qwen2", small("qwen2")},
      {"qwen3", small("qwen3")},
      {"mistral with a window", small("mistral", {{"sliding_window", 40}})},
      {"gemma3", small("gemma3_text", {{"sliding_window", 70}, {"head_dim", 16}})},
      {"gpt2", small("gpt2")},
      {"gpt_neox", small("gpt_neox")},
      {"olmo2", small("olmo2")},
      {"mixtral", small("mixtral", {{"num_local_experts", 4}})},
      {"gpt_oss", small("gpt_oss", {{"num_local_experts", 4}, {"num_experts_per_tok", 2}, {"sliding_window", 30}})},
      {"gated attention", hybrid({"full_attention", "full_attention"})},
  };
  return all;
}

const std::vector<std::pair<std::string, Json>>& others() {
  static const std::vector<std::pair<std::string, Json>> all = [] {
    std::vector<std::pair<std::string, Json>> list = {{"deepseek_v3", latent("deepseek_v3")},
                                                      {"deepseek_v32", latent("deepseek_v32")},
                                                      {"qwen3_next", hybrid({"linear_attention", "full_attention"})}};
    list[1].second.update({{"index_n_heads", 16}, {"index_head_dim", 16}, {"index_topk", 24}});
    return list;
  }();
  return all;
}

const std::vector<int64_t> kLengths = {2, 63, 64, 70, 140};

// Greatest and mean distance from the trainer.
std::pair<double, double> distance(const models::Decoder& model, const std::vector<Request>& requests,
                                   const std::vector<Sample>& samples) {
  double worst = 0, sum = 0;
  int64_t count = 0;
  for (size_t s = 0; s < samples.size(); ++s) {
    const auto expected = trained(model, requests[s * requests.size() / samples.size()], samples[s]);
    for (size_t i = 0; i < expected.size(); ++i, ++count) {
      const double d = std::abs(samples[s].logprobs[i] - expected[i]);
      worst = std::max(worst, d), sum += d;
    }
  }
  return {worst, sum / count};
}

TEST(RolloutLogProbabilities, AreTheTrainers) {
  const auto tokenizer = data::Tokenizer::bytes();
  const SamplingOptions sampling{.max_tokens = 70, .top_p = 0.9, .seed = 6, .stop_at_eos = false};
  const std::vector<Request> requests = requests_of(kLengths, 2);
  for (const auto& [name, json] : pageable()) {
    const models::Decoder model = model_of(json);
    ASSERT_TRUE(model.pageable()) << name;
    Engine engine(model, *tokenizer, {.page_size = 32});
    const auto samples = engine.run(requests, sampling, 0);
    EXPECT_EQ(engine.stats().most_running, 10) << name;
    const auto [worst, mean] = distance(model, requests, samples);
    EXPECT_LE(worst, 5e-5) << name;
    EXPECT_LE(mean, 1e-5) << name;
    // Exact: bit for bit, and the same tokens.
    Engine exact(model, *tokenizer, {.exact = true});
    const auto exactly = exact.run(requests, sampling, 0);
    for (size_t s = 0; s < samples.size(); ++s) {
      EXPECT_EQ(exactly[s].ids, samples[s].ids) << name;
      EXPECT_TRUE(same_bits(exactly[s].logprobs, trained(model, requests[s / 2], exactly[s]))) << name;
    }
  }
}

TEST(RolloutLogProbabilities, AreTheTrainersOneByOne) {
  const auto tokenizer = data::Tokenizer::bytes();
  const SamplingOptions sampling{.max_tokens = 40, .seed = 6, .stop_at_eos = false};
  const std::vector<Request> requests = requests_of(kLengths, 2);
  for (const auto& [name, json] : others()) {
    const models::Decoder model = model_of(json);
    ASSERT_FALSE(model.pageable()) << name;
    Engine engine(model, *tokenizer, {});
    const auto samples = engine.run(requests, sampling, 0);
    EXPECT_EQ(engine.stats().prompt_tokens, 2 + 63 + 64 + 70 + 140) << name;
    const auto [worst, mean] = distance(model, requests, samples);
    EXPECT_LE(worst, 5e-5) << name;
    EXPECT_LE(mean, 1e-5) << name;
    const std::vector<Request> reversed(requests.rbegin(), requests.rend());
    const auto backwards = engine.run(reversed, sampling, 0);
    for (size_t i = 0; i < 10; ++i) expect_same(backwards[(4 - i / 2) * 2 + i % 2], samples[i], name);
    EXPECT_NE(samples[0].ids, samples[1].ids);
    EXPECT_THROW(Engine(model, *tokenizer, {.exact = true}), std::invalid_argument) << name;
    // A pass over pages is refused by the decoder too.
    models::PagedCache cache;
    models::Pass pass{.positions = at::zeros({1}, at::kInt)};
    pass.paged = &cache;
    EXPECT_THROW(model.hidden(at::zeros({1}, at::kInt), pass), std::invalid_argument) << name;
  }
  EXPECT_THROW(Engine(model_of(others()[0].second), *tokenizer, {.cache_mib = 1})
                   .run(requests_of({10}, 1), {.max_tokens = 1000}, 0),
               std::invalid_argument);
}

// The trainer packs several sequences into a row, each from a multiple of 64: the same bits, at any temperature.
TEST(RolloutLogProbabilities, AreThoseOfAPackedRowAtAnyTemperature) {
  const models::Decoder model = model_of(llama());
  const auto tokenizer = data::Tokenizer::bytes();
  Engine engine(model, *tokenizer, {.exact = true});
  const std::vector<Request> requests = requests_of({9, 70, 64}, 1);
  for (const double temperature : {1.0, 0.7}) {
    const auto samples = engine.run(requests, {.max_tokens = 50, .temperature = temperature, .stop_at_eos = false}, 0);
    std::vector<int32_t> ids, targets, positions, segments;
    std::vector<int64_t> first;
    for (size_t s = 0; s < 3; ++s) {
      std::vector<int32_t> all = requests[s].prompt;
      all.insert(all.end(), samples[s].ids.begin(), samples[s].ids.end());
      first.push_back(static_cast<int64_t>(ids.size() + requests[s].prompt.size()) - 1);
      for (size_t i = 0; i + 1 < all.size() || ids.size() % 64 != 0; ++i) {
        ids.push_back(i < all.size() ? all[i] : 0);
        targets.push_back(i + 1 < all.size() ? all[i + 1] : -1);
        positions.push_back(static_cast<int32_t>(i)), segments.push_back(static_cast<int32_t>(s));
      }
    }
    const auto tensor = [](const std::vector<int32_t>& x) {
      return at::tensor(at::ArrayRef<int32_t>(x), at::TensorOptions(at::kInt));
    };
    models::Pass pass{.length = static_cast<int64_t>(ids.size()), .positions = tensor(positions)};
    pass.segments = tensor(segments);
    const at::Tensor all = model.score(tensor(ids), tensor(targets), pass, {.temperature = temperature}).logprobs;
    for (size_t s = 0; s < 3; ++s) {
      const float* from = all.const_data_ptr<float>() + first[s];
      EXPECT_TRUE(same_bits(samples[s].logprobs, {from, from + samples[s].ids.size()})) << s << ", " << temperature;
    }
    // And without `exact` they are near.
    const auto near = Engine(model, *tokenizer, {})
                          .run(requests, {.max_tokens = 50, .temperature = temperature, .stop_at_eos = false}, 0);
    for (size_t s = 0; s < 3; ++s) {
      ASSERT_EQ(near[s].ids, samples[s].ids);
      for (size_t i = 0; i < near[s].ids.size(); ++i) EXPECT_NEAR(near[s].logprobs[i], samples[s].logprobs[i], 5e-5);
    }
  }
}

// By the plain twins and by LibTorch's operators: the same pages through other kernels.
TEST(RolloutLogProbabilities, ComeFromTheTwinsToo) {
  const auto tokenizer = data::Tokenizer::bytes();
  const std::vector<Request> requests = requests_of({5, 64, 70}, 2);
  const SamplingOptions sampling{.max_tokens = 20, .temperature = 0, .stop_at_eos = false};
  for (const auto& [name, json] : {pageable()[0], pageable()[4], pageable()[10]}) {
    const models::Decoder model = model_of(json);
    for (const bool aten : {false, true}) {
      EngineOptions options{.page_size = 16};
      options.like.reference = !aten, options.like.aten = aten;
      const auto samples = Engine(model, *tokenizer, options).run(requests, sampling, 0);
      EXPECT_LE(distance(model, requests, samples).first, 5e-5) << name;
      options.exact = true;
      EXPECT_THROW(Engine(model, *tokenizer, options), std::invalid_argument);
    }
  }
}

}  // namespace
}  // namespace cairn::rollout
