// labels: quick
// Sampling one token, and text that grows token by token.
#include "trainer/generate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "models/families/family.h"
#include "trainer/text_stream.h"

namespace cairn {
namespace {

using Logits = std::vector<float>;

std::pair<int32_t, float> sample(const Logits& logits, const SamplingOptions& options, double uniform) {
  return sample_token(logits.data(), static_cast<int64_t>(logits.size()), options, uniform);
}

Logits random_logits(size_t count, float spread, uint32_t seed = 7) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> draw(0, spread);
  Logits logits(count);
  for (float& x : logits) x = draw(generator);
  return logits;
}

// log softmax(logits / temperature)[id], term by term.
double logprob_of(const Logits& logits, int32_t id, double temperature) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  for (const float x : logits) total += std::exp((x - largest) / temperature);
  return (logits[id] - largest) / temperature - std::log(total);
}

// Which tokens come out over a fine grid of uniform numbers, and how often.
std::map<int32_t, double> drawn(const Logits& logits, const SamplingOptions& options, int draws = 4000) {
  std::map<int32_t, double> share;
  for (int i = 0; i < draws; ++i) share[sample(logits, options, (i + 0.5) / draws).first] += 1.0 / draws;
  return share;
}

// The probabilities of the tokens that the options leave, by the definition: sorted, cut, divided by what is left.
std::map<int32_t, double> expected(const Logits& logits, const SamplingOptions& options) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  std::vector<double> p;
  for (const int32_t id : order) p.push_back(std::exp(logprob_of(logits, id, options.temperature)));
  size_t kept = order.size();
  if (options.top_k > 0) kept = std::min<size_t>(kept, options.top_k);
  while (kept > 1 && p[kept - 1] < options.min_p * p[0]) --kept;
  double mass = std::accumulate(p.begin(), p.begin() + kept, 0.0), reached = 0;
  size_t nucleus = 0;
  while (nucleus < kept && (nucleus == 0 || reached < options.top_p * mass)) reached += p[nucleus++];
  std::map<int32_t, double> left;
  for (size_t i = 0; i < nucleus; ++i) left[order[i]] = p[i] / reached;
  return left;
}

TEST(SampleToken, GreedyTakesTheLowestOfTheLargest) {
  const SamplingOptions greedy{.temperature = 0};
  EXPECT_EQ(sample({1, 3, 2, 3}, greedy, 0.9).first, 1);
  EXPECT_EQ(sample({5}, greedy, 0).first, 0);
  for (const size_t count : {2, 31, 32, 33, 64, 100, 513, 5000}) {
    Logits logits = random_logits(count, 3);
    for (const size_t at : {size_t{0}, count / 2, count - 1}) {
      Logits tied = logits;
      tied[at] = tied[count - 1] = 50;
      EXPECT_EQ(sample(tied, greedy, 0.5).first, at) << count;
    }
  }
}

TEST(SampleToken, LogProbabilityIsThatOfTheWholeSoftmax) {
  for (const size_t count : {1, 7, 64, 1000, 49152}) {
    const Logits logits = random_logits(count, 4);
    const auto [best, greedy] = sample(logits, {.temperature = 0}, 0);
    EXPECT_NEAR(greedy, logprob_of(logits, best, 1.0), 1e-6) << count;
    for (const double temperature : {0.3, 1.0, 2.5}) {
      for (const auto& options :
           {SamplingOptions{.temperature = temperature}, SamplingOptions{.temperature = temperature, .top_k = 3},
            SamplingOptions{.temperature = temperature, .top_p = 0.5, .min_p = 0.01}}) {
        const auto [id, logprob] = sample(logits, options, 0.7);
        const double want = logprob_of(logits, id, temperature);
        EXPECT_NEAR(logprob, want, 1e-6 * std::max(1.0, std::abs(want))) << count << " " << temperature;
      }
    }
  }
}

TEST(SampleToken, LogitsOfNoMassAndWideRanges) {
  const float none = -std::numeric_limits<float>::infinity();
  const auto share = drawn({none, 0, none, 0, none}, {}, 100);
  EXPECT_EQ(share.size(), 2u);
  EXPECT_NEAR(share.at(1), 0.5, 0.02);
  EXPECT_EQ(sample({none, 2, none}, {}, std::nextafter(1.0, 0.0)), std::pair(1, 0.0f));
  const auto [id, logprob] = sample({-2e4f, 3e4f, 1e4f}, {.temperature = 0}, 0);
  EXPECT_EQ(id, 1);
  EXPECT_EQ(logprob, 0);
}

TEST(SampleToken, FrequenciesAreTheDefinitions) {
  const Logits logits = random_logits(40, 1.5);
  const SamplingOptions cases[] = {
      {},
      {.temperature = 0.5},
      {.temperature = 2},
      {.top_k = 1},
      {.top_k = 5},
      {.top_k = 400},
      {.top_p = 0.6},
      {.top_p = 1e-9},
      {.min_p = 0.2},
      {.temperature = 0.7, .top_k = 10, .top_p = 0.8, .min_p = 0.05},
      {.temperature = 1.5, .top_p = 0.9, .min_p = 0.1},
  };
  for (const SamplingOptions& options : cases) {
    const auto want = expected(logits, options), got = drawn(logits, options);
    for (const auto& [id, share] : got) EXPECT_TRUE(want.contains(id)) << id << " is cut, but was drawn " << share;
    for (const auto& [id, p] : want) {
      const double share = got.contains(id) ? got.at(id) : 0;
      EXPECT_NEAR(share, p, 1.0 / 2000) << options.temperature << " " << options.top_k << " " << options.top_p;
    }
  }
}

TEST(SampleToken, TiesAtTheCutGoToTheLowerId) {
  const Logits flat(50, 1.0f);
  std::set<int32_t> ids;
  for (const auto& [id, share] : drawn(flat, {.top_k = 4}, 200)) ids.insert(id);
  EXPECT_EQ(ids, (std::set<int32_t>{0, 1, 2, 3}));
  ids.clear();
  for (const auto& [id, share] : drawn(flat, {.top_p = 0.1}, 200)) ids.insert(id);
  EXPECT_EQ(ids, (std::set<int32_t>{0, 1, 2, 3, 4}));
}

TEST(SamplingOptionsCheck, RefusesWhatIsOutOfRange) {
  EXPECT_NO_THROW(check({}));
  for (const SamplingOptions& wrong :
       {SamplingOptions{.max_tokens = 0}, SamplingOptions{.temperature = -1}, SamplingOptions{.temperature = NAN},
        SamplingOptions{.top_k = -1}, SamplingOptions{.top_p = 0}, SamplingOptions{.top_p = 1.1},
        SamplingOptions{.min_p = 1}, SamplingOptions{.min_p = -0.1}})
    EXPECT_THROW(check(wrong), std::invalid_argument);
}

// ---- text that grows

// Byte fallback, metaspace and the space that is dropped in front, as Llama has them.
std::shared_ptr<const data::Tokenizer> llama_like() {
  nlohmann::ordered_json vocabulary{{"<unk>", 0}, {"<s>", 1}, {"</s>", 2}};
  const char* hex = "0123456789ABCDEF";
  for (int b = 0; b < 256; ++b) vocabulary[fmt::format("<0x{}{}>", hex[b / 16], hex[b % 16])] = 3 + b;
  int next = 259;
  for (const char* token : {"▁", "a", "b", "▁a", "▁b", "▁▁", "é", "ab", "▁ab", "."}) vocabulary[token] = next++;
  const nlohmann::ordered_json json{{"version", "1.0"},
                                    {"added_tokens", nlohmann::ordered_json::array()},
                                    {"normalizer", nullptr},
                                    {"pre_tokenizer", nullptr},
                                    {"post_processor", nullptr},
                                    {"decoder",
                                     {{"type", "Sequence"},
                                      {"decoders",
                                       {{{"type", "Replace"}, {"pattern", {{"String", "▁"}}}, {"content", " "}},
                                        {{"type", "ByteFallback"}},
                                        {{"type", "Fuse"}},
                                        {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}}},
                                    {"model",
                                     {{"type", "BPE"},
                                      {"unk_token", "<unk>"},
                                      {"fuse_unk", true},
                                      {"byte_fallback", true},
                                      {"vocab", vocabulary},
                                      {"merges", nlohmann::ordered_json::array()}}}};
  return data::Tokenizer::from_json(json.dump(), "llama-like");
}

std::vector<int32_t> byte_ids(std::string_view text) { return data::Tokenizer::bytes()->encode(text); }

// What is shown while `ids` arrive, joined; `pieces` receives each.
std::string streamed(const data::Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                     const std::vector<std::string>& stop = {}, std::vector<std::string>* pieces = nullptr) {
  TextStream stream(tokenizer, stop);
  std::string shown;
  auto show = [&](const std::string& piece) {
    if (piece.empty()) return;
    if (pieces) pieces->push_back(piece);
    shown += piece;
  };
  for (const int32_t id : ids) {
    if (stream.stopped()) break;
    stream.push(id);
    show(stream.take());
  }
  show(stream.finish());
  EXPECT_EQ(shown, stream.text());
  return shown;
}

TEST(TextStream, EqualsDecodingEverythingAtEveryLength) {
  std::mt19937 generator(3);
  for (const auto& tokenizer : {data::Tokenizer::bytes(), llama_like()}) {
    for (int round = 0; round < 60; ++round) {
      std::vector<int32_t> ids;
      TextStream stream(*tokenizer);
      for (int i = 0; i < 40; ++i) {
        // Some runs of plain text, of broken bytes and of ids that the vocabulary does not have.
        const int kind = static_cast<int>(generator() % 8);
        const int32_t size = tokenizer->vocab_size();
        ids.push_back(static_cast<int32_t>(kind < 4    ? size - 1 - generator() % 10
                                           : kind == 4 ? generator() % (size + 20)
                                           : kind == 5 ? 3 + 'a'
                                                       : generator() % 256));
        stream.push(ids.back());
        ASSERT_EQ(stream.text(), tokenizer->decode(ids)) << fmt::format("{}", fmt::join(ids, " "));
      }
      EXPECT_EQ(streamed(*tokenizer, ids), tokenizer->decode(ids));
    }
  }
}

TEST(TextStream, ACharacterIsHeldBackUntilItIsWhole) {
  std::vector<std::string> pieces;
  const std::string text = "aé漢🙂z";
  EXPECT_EQ(streamed(*data::Tokenizer::bytes(), byte_ids(text), {}, &pieces), text);
  EXPECT_EQ(pieces, (std::vector<std::string>{"a", "é", "漢", "🙂", "z"}));
  // One that is never completed is shown at the end, as decoding shows it.
  pieces.clear();
  EXPECT_EQ(streamed(*data::Tokenizer::bytes(), byte_ids("a"), {}, &pieces), "a");
  std::vector<int32_t> cut = byte_ids("a漢");
  cut.pop_back();
  pieces.clear();
  EXPECT_EQ(streamed(*data::Tokenizer::bytes(), cut, {}, &pieces), "a\xEF\xBF\xBD");
  EXPECT_EQ(pieces, (std::vector<std::string>{"a", "\xEF\xBF\xBD"}));
}

TEST(TextStream, StopsAtTheFirstStopString) {
  const auto bytes = data::Tokenizer::bytes();
  EXPECT_EQ(streamed(*bytes, byte_ids("one END two"), {"END"}), "one ");
  EXPECT_EQ(streamed(*bytes, byte_ids("one END two"), {"two", "END"}), "one ");
  EXPECT_EQ(streamed(*bytes, byte_ids("one"), {"", "END"}), "one");
  EXPECT_EQ(streamed(*bytes, byte_ids("END"), {"END"}), "");
  EXPECT_EQ(streamed(*bytes, byte_ids("a漢字b"), {"字"}), "a漢");
  // Nothing that turns out to belong to it is ever shown, and what does not is shown later.
  std::vector<std::string> pieces;
  EXPECT_EQ(streamed(*bytes, byte_ids("xENyEND"), {"END"}, &pieces), "xENy");
  EXPECT_EQ(pieces, (std::vector<std::string>{"x", "ENy"}));
  // The longest text that could begin one of several.
  EXPECT_EQ(streamed(*bytes, byte_ids("aababc"), {"abab!", "abc"}), "aab");
  const auto llama = llama_like();
  EXPECT_EQ(streamed(*llama, {260, 262, 268, 13, 260}, {"\n"}), "a a.");  // <0x0A> is id 13
}

// ---- a whole generation

models::Decoder tiny_model() {
  const nlohmann::ordered_json config{{"model_type", "llama"},      {"hidden_size", 32},
                                      {"num_hidden_layers", 2},     {"num_attention_heads", 4},
                                      {"num_key_value_heads", 2},   {"intermediate_size", 48},
                                      {"vocab_size", 257},          {"max_position_embeddings", 64},
                                      {"tie_word_embeddings", true}};
  models::Decoder model(models::decoder_config(config, true), at::kFloat);
  model.parameters().initialise(5);
  return model;
}

TEST(Generator, DrawsDependOnSeedAndPositionAlone) {
  const models::Decoder model = tiny_model();
  const auto tokenizer = data::Tokenizer::bytes();
  const Generator generator(model, *tokenizer);
  const std::vector<int32_t> prompt = byte_ids("cairn");
  SamplingOptions options{.max_tokens = 20, .temperature = 1.5, .seed = 9, .stop_at_eos = false};
  const Generation whole = generator.run(prompt, options);
  EXPECT_EQ(whole.ids.size(), 20u);
  EXPECT_EQ(whole.finish_reason, "length");
  EXPECT_EQ(generator.run(prompt, options).ids, whole.ids);
  // From the middle on: the same positions, so the same draws.
  std::vector<int32_t> longer = prompt;
  longer.insert(longer.end(), whole.ids.begin(), whole.ids.begin() + 8);
  options.max_tokens = 12;
  EXPECT_EQ(generator.run(longer, options).ids, std::vector<int32_t>(whole.ids.begin() + 8, whole.ids.end()));
  options.seed = 10;
  EXPECT_NE(generator.run(longer, options).ids, std::vector<int32_t>(whole.ids.begin() + 8, whole.ids.end()));
}

TEST(Generator, TheContextBoundsTheAnswerAndBadPromptsAreRefused) {
  const models::Decoder model = tiny_model();
  const auto tokenizer = data::Tokenizer::bytes();
  const Generator generator(model, *tokenizer);
  EXPECT_EQ(generator.run(std::vector<int32_t>(60, 1), {.max_tokens = 100, .temperature = 0}).ids.size(), 4u);
  EXPECT_THROW(generator.run({}, {}), std::invalid_argument);
  EXPECT_THROW(generator.run(std::vector<int32_t>(64, 1), {}), std::invalid_argument);
  EXPECT_THROW(generator.run({257}, {}), std::invalid_argument);
  EXPECT_THROW(generator.run({-1}, {}), std::invalid_argument);
}

TEST(Generator, WhatIsShownIsTheText) {
  const models::Decoder model = tiny_model();
  const auto tokenizer = data::Tokenizer::bytes();
  std::string shown;
  const Generation g = Generator(model, *tokenizer)
                           .run(byte_ids("a"), {.max_tokens = 50, .seed = 4, .stop_at_eos = false},
                                [&](std::string_view piece) { shown += piece; });
  EXPECT_EQ(shown, g.text);
  EXPECT_EQ(g.text, tokenizer->decode(g.ids));
}

}  // namespace
}  // namespace cairn
