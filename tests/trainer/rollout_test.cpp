// labels: quick
// Rollouts: what a sample may depend on, how prompts and memory are shared, how completions end, what is refused.
#include "models/random.h"
#include "tests/trainer/rollout_fixture.h"

namespace cairn::rollout {
namespace {

const std::vector<int64_t> kLengths = {3, 40, 64, 65, 130};

TEST(Rollout, ASampleDependsOnNothingElse) {
  const models::Decoder model = model_of(llama());
  const auto tokenizer = data::Tokenizer::bytes();
  const std::vector<Request> requests = requests_of(kLengths, 3);
  const SamplingOptions sampling{
      .max_tokens = 40, .temperature = 1.1, .top_k = 60, .top_p = 0.95, .min_p = 0.001, .seed = 11};
  const auto run = [&](const EngineOptions& options, const std::vector<Request>& some) {
    return Engine(model, *tokenizer, options).run(some, sampling, 4);
  };
  const std::vector<Sample> expected = run({}, requests);
  ASSERT_EQ(expected.size(), 15u);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(expected[i].prompt_index, requests[i / 3].prompt_index);
    EXPECT_EQ(expected[i].sample_index, i % 3);
    EXPECT_EQ(expected[i].ids.size(), expected[i].logprobs.size());
  }
  EXPECT_NE(expected[0].ids, expected[1].ids);
  const auto expect_all = [&](const std::vector<Sample>& got, const std::string& what) {
    ASSERT_EQ(got.size(), expected.size()) << what;
    for (size_t i = 0; i < got.size(); ++i) expect_same(got[i], expected[i], what);
  };
  for (const int64_t page_size : {16, 32, 128})
    expect_all(run({.page_size = page_size}, requests), "pages of " + std::to_string(page_size));
  for (const int64_t batch : {1, 2, 7, 9})
    expect_all(run({.page_size = 16, .max_batch = batch}, requests), "batch of " + std::to_string(batch));
  for (const int64_t rows : {1, 100, 200})
    expect_all(run({.prefill_rows = rows}, requests), "prompts of " + std::to_string(rows) + " rows at a time");
  for (const int threads : {1, 2}) {
    const Threads set(threads);
    expect_all(run({}, requests), std::to_string(threads) + " threads");
  }
  for (size_t i = 0; i < requests.size(); ++i) {
    Request one = requests[i];
    const auto alone = run({}, {one});
    one.samples = 1;
    expect_same(run({}, {one}).at(0), expected[3 * i], "one sample alone");
    for (size_t j = 0; j < 3; ++j) expect_same(alone.at(j), expected[3 * i + j], "one prompt alone");
  }
  std::vector<Request> reversed(requests.rbegin(), requests.rend());
  const auto backwards = run({}, reversed);
  for (size_t i = 0; i < 15; ++i) expect_same(backwards[(4 - i / 3) * 3 + i % 3], expected[i], "another order");
}

TEST(Rollout, RandomNumbersHaveTheirOwnKeys) {
  const DrawKey key{.step = 2, .prompt = 3, .sample = 4, .position = 5};
  for (const DrawKey& other : {DrawKey{3, 3, 4, 5}, DrawKey{2, 4, 4, 5}, DrawKey{2, 3, 5, 5}, DrawKey{2, 3, 4, 6}})
    EXPECT_NE(uniform_of(9, key), uniform_of(9, other));
  EXPECT_NE(uniform_of(9, key), uniform_of(10, key));
  EXPECT_EQ(uniform_of(9, {.position = 5}), (Philox{9, Purpose::sample, 5}.uniform(0)));
  const models::Decoder model = model_of(llama());
  Engine engine(model, *data::Tokenizer::bytes(), {});
  const auto requests = requests_of({10}, 1);
  const auto ids = [&](uint64_t seed, uint64_t step) {
    return engine.run(requests, {.max_tokens = 30, .seed = seed, .stop_at_eos = false}, step).at(0).ids;
  };
  EXPECT_EQ(ids(1, 1), ids(1, 1));
  EXPECT_NE(ids(1, 1), ids(1, 2));
  EXPECT_NE(ids(1, 1), ids(2, 1));
}

// Sample 0 of prompt 0 of step 0 is drawn with the numbers of Generator.
TEST(Rollout, IsWhatTheGeneratorDraws) {
  const models::Decoder model = model_of(llama());
  const auto tokenizer = data::Tokenizer::bytes();
  const Generator generator(model, *tokenizer);
  Engine engine(model, *tokenizer, {.page_size = 16});
  for (const double temperature : {0.0, 0.8}) {
    for (const int64_t length : {2, 30, 100}) {
      const Request request{random_prompt(length, length), 0, 2};
      const SamplingOptions sampling{
          .max_tokens = 60, .min_tokens = 5, .temperature = temperature, .seed = 3, .end_ids = {1, 2, 3, 4, 5, 6, 7}};
      const Generation expected = generator.run(request.prompt, sampling);
      Sample got = engine.run({&request, 1}, sampling, 0).at(0);
      EXPECT_EQ(got.finish_reason, expected.finish_reason);
      EXPECT_EQ(got.text, expected.text);
      if (got.finish_reason == "eos") got.ids.pop_back();  // the generator leaves it out
      ASSERT_EQ(got.ids, expected.ids) << temperature << ", " << length;
      for (size_t i = 0; i < got.ids.size(); ++i) EXPECT_NEAR(got.logprobs[i], expected.logprobs[i], 5e-5);
    }
  }
}

TEST(Rollout, AGroupComputesItsPromptOnceAndSharesItsPages) {
  const models::Decoder model = model_of(llama());
  const auto tokenizer = data::Tokenizer::bytes();
  for (const int64_t length : {128, 130}) {
    const std::vector<Request> requests = requests_of({length}, 8);
    Engine engine(model, *tokenizer, {.page_size = 32});
    const auto samples = engine.run(requests, {.max_tokens = 20, .stop_at_eos = false}, 0);
    EXPECT_EQ(engine.stats().prompt_tokens, length);
    EXPECT_EQ(engine.stats().tokens, 160);
    EXPECT_EQ(engine.stats().steps, 19);
    EXPECT_EQ(engine.stats().most_running, 8);
    // Four full pages of the prompt and one of each sample's own: the part of a fifth is copied.
    EXPECT_EQ(engine.stats().most_pages, 4 + 8);
    EXPECT_NE(samples[0].ids, samples[7].ids);
  }
}

TEST(Rollout, StopStringsEndACompletionAcrossTokens) {
  const models::Decoder model = model_of(llama());
  const auto tokenizer = data::Tokenizer::bytes();
  Engine engine(model, *tokenizer, {});
  const std::vector<Request> requests = requests_of({12}, 4);
  SamplingOptions sampling{.max_tokens = 100, .seed = 2, .stop_at_eos = false};
  int found = 0;
  for (const Sample& whole : engine.run(requests, sampling, 0)) {
    // Two letters in a row: a token each.
    for (size_t i = 5; i + 1 < whole.ids.size(); ++i) {
      const auto letter = [&](size_t k) { return whole.ids[k] > 32 && whole.ids[k] < 127; };
      if (!letter(i) || !letter(i + 1)) continue;
      const std::string stop{static_cast<char>(whole.ids[i]), static_cast<char>(whole.ids[i + 1])};
      const size_t first = tokenizer->decode_bytes(whole.ids).find(stop);  // one byte a token
      sampling.stop = {"never occurs here", stop};
      const Sample cut = engine.run(requests, sampling, 0).at(whole.sample_index);
      EXPECT_EQ(cut.finish_reason, "stop");
      EXPECT_EQ(cut.ids, std::vector<int32_t>(whole.ids.begin(), whole.ids.begin() + first + 2));
      EXPECT_EQ(cut.text, tokenizer->decode({whole.ids.data(), first}));
      EXPECT_TRUE(same_bits(cut.logprobs, {whole.logprobs.begin(), whole.logprobs.begin() + first + 2}));
      sampling.stop = {};
      ++found;
      break;
    }
  }
  EXPECT_GT(found, 1);
}

TEST(Rollout, EndsBelongToTheCompletionAndComeAfterMinTokens) {
  const models::Decoder model = model_of(llama());
  const auto tokenizer = data::Tokenizer::bytes();
  Engine engine(model, *tokenizer, {});
  const std::vector<Request> requests = requests_of({20}, 8);
  SamplingOptions sampling{.max_tokens = 30, .seed = 5};
  for (int32_t id = 0; id < 100; ++id) sampling.end_ids.push_back(id);
  const auto is_end = [](int32_t id) { return id < 100 || id == 256; };
  size_t shortest = 30;
  for (const int64_t least : {0, 10}) {
    sampling.min_tokens = least;
    for (const Sample& sample : engine.run(requests, sampling, 0)) {
      for (size_t i = 0; i + 1 < sample.ids.size(); ++i) EXPECT_FALSE(is_end(sample.ids[i]));
      EXPECT_EQ(is_end(sample.ids.back()), sample.finish_reason == "eos");
      EXPECT_EQ(sample.text, tokenizer->decode({sample.ids.data(), sample.ids.size() - is_end(sample.ids.back())}));
      EXPECT_GT(static_cast<int64_t>(sample.ids.size()), least);
      if (least == 0) shortest = std::min(shortest, sample.ids.size());
      // Of all tokens, also where some could not be drawn.
      const std::vector<float> expected = trained(model, requests[0], sample);
      for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(sample.logprobs[i], expected[i], 5e-5);
    }
  }
  EXPECT_LT(shortest, 5u);
}

TEST(Rollout, AFullContextIsAnErrorOrACountedTruncation) {
  const models::Decoder model = model_of(llama({{"max_position_embeddings", 64}}));
  const auto tokenizer = data::Tokenizer::bytes();
  const std::vector<Request> requests = requests_of({20, 50}, 2);
  const SamplingOptions sampling{.max_tokens = 20, .stop_at_eos = false};
  EXPECT_THROW(Engine(model, *tokenizer, {}).run(requests, sampling, 0), std::invalid_argument);
  Engine engine(model, *tokenizer, {.overflow = Overflow::truncate});
  const auto samples = engine.run(requests, sampling, 0);
  EXPECT_EQ(engine.stats().truncated, 2);
  for (const size_t i : {0, 1}) EXPECT_EQ(samples[i].ids.size(), 20u);
  for (const size_t i : {2, 3}) {
    EXPECT_EQ(samples[i].ids.size(), 14u);
    EXPECT_EQ(samples[i].finish_reason, "length");
    const auto expected = trained(model, requests[1], samples[i]);
    for (size_t t = 0; t < 14; ++t) EXPECT_NEAR(samples[i].logprobs[t], expected[t], 5e-5);
  }
  engine.run({requests.data(), 1}, sampling, 0);
  EXPECT_EQ(engine.stats().truncated, 0);
  // A prompt that leaves no room is an error either way.
  for (const int64_t length : {64, 65})
    EXPECT_THROW(engine.run(requests_of({length}, 1), sampling, 0), std::invalid_argument);
}

TEST(Rollout, WaitsForMemoryAndGivesTheSame) {
  const models::Decoder model = model_of(llama({{"num_hidden_layers", 4}, {"num_key_value_heads", 6}}));
  const auto tokenizer = data::Tokenizer::bytes();
  const std::vector<Request> requests = requests_of({150, 200, 33, 180, 90}, 6);
  const SamplingOptions sampling{.max_tokens = 50, .seed = 8, .stop_at_eos = false};
  Engine roomy(model, *tokenizer, {.page_size = 16}), tight(model, *tokenizer, {.page_size = 16, .cache_mib = 1});
  const auto expected = roomy.run(requests, sampling, 1), got = tight.run(requests, sampling, 1);
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) expect_same(got[i], expected[i], "little memory");
  EXPECT_EQ(roomy.stats().waited, 0);
  EXPECT_GT(tight.stats().waited, 0);
  EXPECT_LT(tight.stats().most_running, roomy.stats().most_running);
  // 4 blocks, 6 heads, keys and values of 16.
  const int64_t bytes = tight.stats().pages * 4 * 6 * 16 * 16 * 2 * sizeof(float);
  EXPECT_LE(bytes, 1 << 20);
  EXPECT_LE(tight.stats().most_pages, tight.stats().pages);
  EXPECT_EQ(tight.stats().prompt_tokens, roomy.stats().prompt_tokens);
  // Again with the pages of the run before.
  const auto again = tight.run(requests, sampling, 1);
  for (size_t i = 0; i < got.size(); ++i) expect_same(again[i], expected[i], "old pages");
  // Six pages of 64 where there are five.
  EXPECT_THROW(Engine(model, *tokenizer, {.cache_mib = 1}).run(requests_of({270}, 1), {.max_tokens = 50}, 1),
               std::invalid_argument);
}

TEST(Rollout, ReportsProgressAndStopsWhereToldTo) {
  const models::Decoder model = model_of(llama());
  Engine engine(model, *data::Tokenizer::bytes(), {.max_batch = 2});
  const auto requests = requests_of({5, 6, 7}, 1);
  const SamplingOptions sampling{.max_tokens = 4, .stop_at_eos = false};
  std::vector<int64_t> finished, tokens;
  engine.run(requests, sampling, 0, [&](const Progress& p) {
    EXPECT_EQ(p.samples, 3);
    finished.push_back(p.finished), tokens.push_back(p.tokens);
  });
  EXPECT_TRUE(std::is_sorted(finished.begin(), finished.end()));
  EXPECT_EQ(finished.back(), 3);
  EXPECT_EQ(tokens.back(), 12);
  EXPECT_THROW(engine.run(requests, sampling, 0, [](const Progress&) { throw std::runtime_error("enough"); }),
               std::runtime_error);
  EXPECT_EQ(engine.run(requests, sampling, 0).size(), 3u);  // and nothing is left of it
  EXPECT_TRUE(engine.run({}, sampling, 0).empty());
}

TEST(Rollout, BadInputIsRefusedByName) {
  models::Decoder model = model_of(llama());
  const auto tokenizer = data::Tokenizer::bytes();
  Engine engine(model, *tokenizer, {});
  const auto message = [&](const std::vector<Request>& requests, const SamplingOptions& sampling, uint64_t step) {
    try {
      engine.run(requests, sampling, step);
    } catch (const std::invalid_argument& e) {
      return std::string(e.what());
    }
    return std::string("nothing");
  };
  const SamplingOptions plain{.max_tokens = 4};
  const auto expect = [&](const std::string& part, const std::vector<Request>& requests,
                          const SamplingOptions& sampling = {.max_tokens = 4}, uint64_t step = 0) {
    EXPECT_NE(message(requests, sampling, step).find(part), std::string::npos)
        << part << ": " << message(requests, sampling, step);
  };
  expect("prompt_index 3: the prompt is empty", {{{}, 3, 1}});
  expect("prompt_index 4: id 257 lies outside", {{{1}, 3, 1}, {{1, 257}, 4, 1}});
  expect("id -1 lies outside", {{{-1}, 3, 1}});
  expect("leaves no room", {{std::vector<int32_t>(320, 1), 3, 1}});
  expect("exceed the model's context of 320", {{std::vector<int32_t>(317, 1), 3, 1}});
  expect("prompt_index 3: occurs twice", {{{1}, 3, 1}, {{2}, 3, 1}});
  expect("samples: found 0", {{{1}, 3, 0}});
  expect("prompt_index: found -1", {{{1}, -1, 1}});
  expect("prompt_index: found 4294967296", {{{1}, int64_t{1} << 32, 1}});
  expect("step: found 4294967296", {{{1}, 3, 1}}, plain, uint64_t{1} << 32);
  expect("temperature", {{{1}, 3, 1}}, {.temperature = -1});
  expect("draft", {{{1}, 3, 1}}, {.draft = "mtp"});
  expect("min-tokens: found 5", {{{1}, 3, 1}}, {.max_tokens = 4, .min_tokens = 5});
  for (const EngineOptions& options : {EngineOptions{.page_size = 24}, EngineOptions{.max_batch = 0},
                                       EngineOptions{.cache_mib = 0}, EngineOptions{.prefill_rows = 0}})
    EXPECT_THROW(Engine(model, *tokenizer, options), std::invalid_argument);
  at::Tensor(model.parameters().flat()).fill_(NAN);
  EXPECT_THROW(engine.run(requests_of({5}, 1), plain, 0), std::runtime_error);
}

}  // namespace
}  // namespace cairn::rollout
