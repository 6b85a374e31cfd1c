// labels: quick
// Reading tokenizers, encoding and decoding. The cases of llama.cpp; what is refused, and how.
#include "trainer/data/tokenizer/tokenizer.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "tests/data/fixture.h"
#include "tests/data/tokenizer_fixture.h"
#include "trainer/data/tokenizer/pre_tokenizer.h"

namespace cairn::data {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<int32_t>;

TEST(Tokenizer, BytesAreTheirOwnIds) {
  const auto tokenizer = Tokenizer::bytes();
  EXPECT_EQ(tokenizer->vocab_size(), 257);
  EXPECT_EQ(tokenizer->eos_id(), 256);
  EXPECT_FALSE(tokenizer->bos_id());
  EXPECT_EQ(tokenizer->encode("aé\n"), (Ids{'a', 0xC3, 0xA9, '\n'}));
  EXPECT_EQ(tokenizer->encode("a<|endoftext|>b"), (Ids{'a', 256, 'b'}));
  EXPECT_EQ(tokenizer->encode(""), Ids{});
  EXPECT_EQ(tokenizer->decode(Ids{'a', 256, 0xC3, 0xA9}), "a<|endoftext|>é");
  EXPECT_EQ(tokenizer->decode(Ids{'a', 256, 0xC3, 0xA9}, true), "aé");
  EXPECT_EQ(tokenizer->decode(Ids{0xC3, 'x', 5000}), "\uFFFDx");
  std::mt19937 random(1);
  for (int i = 0; i < 200; ++i) {
    const std::string text = random_text(random, 40);
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  }
}

TEST(Tokenizer, InvalidUtf8IsReadAsReplacementCharacters) {
  const auto tokenizer = Tokenizer::bytes();
  // As Python's bytes.decode("utf-8", "replace") gives them.
  const std::pair<std::string, std::string> cases[] = {{"a\xFFz", "a\uFFFDz"},
                                                       {"\xE2\x82", "\uFFFD"},
                                                       {"\xE2\x82z", "\uFFFDz"},
                                                       {"\xED\xA0\x80", "\uFFFD\uFFFD\uFFFD"},
                                                       {"\xF0\x9F\x98", "\uFFFD"},
                                                       {"\xC0\xAF", "\uFFFD\uFFFD"},
                                                       {"\xF4\x90\x80\x80", "\uFFFD\uFFFD\uFFFD\uFFFD"},
                                                       {"\x80\x80", "\uFFFD\uFFFD"},
                                                       {"12345678\xF0\x9F\x98\x80 ok \xE9", "12345678😀 ok \uFFFD"}};
  for (const auto& [broken, repaired] : cases) EXPECT_EQ(tokenizer->encode(broken), tokenizer->encode(repaired));
}

struct Oracle {
  const char* name;
  const char* path;
};

TEST(Tokenizer, BytesOfACutCharacterAreItsOwn) {
  const auto bytes = Tokenizer::bytes();
  const std::string text =
      "gr\xC3\xB6\xC3\x9F"
      "er";
  const auto ids = bytes->encode(text);
  for (size_t cut = 0; cut <= ids.size(); ++cut) {
    const std::span<const int32_t> first(ids.data(), cut);
    EXPECT_EQ(bytes->decode_bytes(first), text.substr(0, cut));
  }
  EXPECT_EQ(bytes->decode(std::span<const int32_t>(ids.data(), 3)), "gr\xEF\xBF\xBD");
  const auto fallback = Tokenizer::from_json(R"({"model": {"type": "BPE", "byte_fallback": true, "merges": [], "vocab":
      {"<0xC3>": 0, "<0xB6>": 1, "\u2581": 2}}, "decoder": {"type": "Sequence", "decoders": [
      {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]}})",
                                             "here");
  const std::vector<int32_t> cut = {2, 0, 1, 0};
  EXPECT_EQ(fallback->decode_bytes(cut), " \xC3\xB6\xC3");
  EXPECT_EQ(fallback->decode(cut), " \xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
}

TEST(Tokenizer, CasesOfLlamaCpp) {
  CAIRN_NEEDS_DATA();
  for (const Oracle& oracle : {Oracle{"gpt-2", "tokenizers/gpt2"}, Oracle{"phi-2", "tokenizers/phi-2"},
                               Oracle{"phi-3", "tokenizers/phi-3/tokenizer.json"}}) {
    const auto tokenizer = Tokenizer::from_file(test_data(oracle.path));
    const std::string base = test_data("tokenizers/oracles/ggml-vocab-") + oracle.name + ".gguf";
    std::string cases = slurp(base + ".inp");
    std::istringstream answers(slurp(base + ".out"));
    const std::string parting = "\n__ggml_vocab_test__\n";
    int count = 0;
    for (size_t begin = 0; begin < cases.size(); ++count) {
      const size_t end = std::min(cases.find(parting, begin), cases.size());
      const std::string text = cases.substr(begin, end - begin);
      begin = end + parting.size();
      std::string line;
      ASSERT_TRUE(std::getline(answers, line)) << oracle.name;
      std::istringstream numbers(line);
      const Ids expected{std::istream_iterator<int32_t>(numbers), {}};
      EXPECT_EQ(tokenizer->encode(text), expected) << oracle.name << ": '" << text << "'";
    }
    EXPECT_EQ(count, 46) << oracle.name;
    EXPECT_FALSE(std::getline(answers, cases)) << oracle.name;
  }
}

TEST(Tokenizer, SpecialTokensAndFilesOfRealModels) {
  CAIRN_NEEDS_DATA();
  const auto gpt2 = Tokenizer::from_file(test_data("tokenizers/gpt2"));
  EXPECT_EQ(gpt2->vocab_size(), 50257);
  EXPECT_EQ(gpt2->eos_id(), 50256);
  EXPECT_EQ(gpt2->token_to_id("Ġthe"), 262);
  EXPECT_EQ(gpt2->id_to_token(262), "Ġthe");
  EXPECT_EQ(gpt2->id_to_token(99999), "");
  const auto deepseek = Tokenizer::from_file(test_data("tokenizers/deepseek"));
  EXPECT_EQ(deepseek->bos_id(), 0);
  EXPECT_EQ(deepseek->eos_id(), 1);
  EXPECT_TRUE(deepseek->is_special(1));
  // Read, saved, read again: the same file, the same digest.
  const Folder folder;
  deepseek->save(folder.path());
  EXPECT_EQ(slurp(folder / "tokenizer.json"), slurp(test_data("tokenizers/deepseek/tokenizer.json")));
  const auto again = Tokenizer::from_file(folder.path());
  EXPECT_EQ(again->digest(), deepseek->digest());
  EXPECT_EQ(again->eos_id(), 1);
}

TEST(Tokenizer, ThreadsGiveTheSameIds) {
  CAIRN_NEEDS_DATA();
  const auto a = Tokenizer::from_file(test_data("tokenizers/gpt2")), b = Tokenizer::bytes();
  std::mt19937 random(7);
  std::vector<std::string> texts;
  std::vector<Ids> expected;
  for (int i = 0; i < 300; ++i) {
    texts.push_back(random_text(random, 60));
    expected.push_back((i % 3 ? a : b)->encode(texts.back()));
  }
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 300; ++i) {
        const int at = (i * 7 + t * 31) % 300;
        if ((at % 3 ? a : b)->encode(texts[at]) != expected[at]) ++wrong;
      }
    });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

// The definition, by hand: the earliest learnt pair, leftmost, until none is left.
Ids merge_slowly(const std::string& word, const std::map<std::string, int32_t>& vocab,
                 const std::map<std::pair<std::string, std::string>, int>& ranks) {
  std::vector<std::string> parts;
  for (const char c : word) parts.push_back(byte_to_char(static_cast<unsigned char>(c)));
  while (true) {
    int best = -1, best_rank = 1 << 30;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto at = ranks.find({parts[i], parts[i + 1]});
      if (at != ranks.end() && at->second < best_rank) best = static_cast<int>(i), best_rank = at->second;
    }
    if (best < 0) break;
    parts[best] += parts[best + 1];
    parts.erase(parts.begin() + best + 1);
  }
  Ids ids;
  for (const auto& part : parts) ids.push_back(vocab.at(part));
  return ids;
}

TEST(Tokenizer, MergesShortAndLongWordsByTheDefinition) {
  CAIRN_NEEDS_DATA();
  const auto gpt2 = Tokenizer::from_file(test_data("tokenizers/gpt2"));
  const Json json = Json::parse(gpt2->to_json());
  std::map<std::string, int32_t> vocab = json["model"]["vocab"];
  std::map<std::pair<std::string, std::string>, int> ranks;
  for (const std::string line : json["model"]["merges"]) {
    const size_t space = line.find(' ');
    ranks.emplace(std::pair(line.substr(0, space), line.substr(space + 1)), static_cast<int>(ranks.size()));
  }
  std::mt19937 random(3);
  for (const int length : {1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 34, 64, 200, 700}) {
    for (int i = 0; i < 20; ++i) {
      std::string word;  // one word to the pattern: letters alone
      for (int k = 0; k < length; ++k) word += "etaoinshrdlu"[random() % (i % 2 ? 12 : 3)];
      EXPECT_EQ(gpt2->encode(word), merge_slowly(word, vocab, ranks)) << word;
    }
  }
}

TEST(Tokenizer, JsonLines) {
  const auto tokenizer = Tokenizer::bytes();
  std::istringstream texts("\"ab\"\n\"\"\n\"\\u00e9\\n\"\n");
  std::ostringstream ids;
  encode_json_lines(*tokenizer, texts, ids, false, "texts");
  EXPECT_EQ(ids.str(), "[97, 98]\n[]\n[195, 169, 10]\n");
  std::istringstream back(ids.str());
  std::ostringstream out;
  decode_json_lines(*tokenizer, back, out, false, "ids");
  EXPECT_EQ(out.str(), "\"ab\"\n\"\"\n\"é\\n\"\n");
  std::istringstream wrong("\"a\"\n[1]\n"), text("[1]\n\"a\"\n");
  expect_error([&] { encode_json_lines(*tokenizer, wrong, out, false, "texts"); }, {"texts: line 2", "JSON string"});
  expect_error([&] { decode_json_lines(*tokenizer, text, out, false, "ids"); }, {"ids: line 2", "array of ids"});
}

// A small tokenizer with one part changed.
std::string with(const std::string& pointer, const Json& value) {
  Json json = Json::parse(
      R"({"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}})");
  json[Json::json_pointer(pointer)] = value;
  return json.dump();
}

TEST(Tokenizer, RefusesWhatItCannotDo) {
  EXPECT_EQ(Tokenizer::from_json(with("/version", "1.0"), "x")->encode("aab"), (Ids{0, 2}));
  const std::tuple<std::string, Json, std::vector<std::string>> cases[] = {
      {"/pre_tokenizer", {{"type", "UnicodeScripts"}}, {"x.json", "pre_tokenizer", "UnicodeScripts", "not supported"}},
      {"/pre_tokenizer",
       {{"type", "Sequence"}, {"pretokenizers", {{{"type", "Digits"}}, {{"type", "Nonsense"}}}}},
       {"pre_tokenizer[1]", "Nonsense"}},
      {"/pre_tokenizer",
       {{"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}},
       {"Split", "(a"}},
      {"/pre_tokenizer",
       {{"type", "Split"}, {"pattern", {{"Regex", "[a&&b]"}}}, {"behavior", "Isolated"}},
       {"intersection"}},
      {"/pre_tokenizer", {{"type", "Split"}, {"pattern", {{"String", "a"}}}, {"behavior", "Sideways"}}, {"Sideways"}},
      {"/pre_tokenizer", {{"type", "Metaspace"}, {"prepend_scheme", "often"}}, {"prepend_scheme", "often"}},
      {"/normalizer", {{"type", "Turbo"}}, {"normalizer", "Turbo"}},
      {"/normalizer", {{"type", "Precompiled"}, {"precompiled_charsmap", "/////w=="}}, {"Precompiled", "cut"}},
      {"/decoder", {{"type", "CTC"}}, {"decoder", "CTC"}},
      {"/post_processor", {{"type", "Odd"}}, {"post_processor", "Odd"}},
      {"/model/type", "Seq2Seq", {"model", "Seq2Seq"}},
      {"/model/dropout", 0.1, {"dropout 0.1"}},
      {"/model/merges", {"a c"}, {"merge 0", "'c'", "vocabulary lacks"}},
      {"/model/merges", {"a b c"}, {"merge 0", "'a b c'"}},
      {"/model/vocab", {{"a", 0}, {"b", 0}}, {"share the id 0"}},
      {"/model/vocab", {{"a", -1}}, {"'a'", "-1"}},
      {"/model/vocab", {{"a", "one"}}, {"'a'", "one"}},
      {"/added_tokens", {{{"id", 3}}}, {"added_tokens[0]", "content"}},
  };
  for (const auto& [pointer, value, parts] : cases)
    expect_error([&, &pointer = pointer, &value = value] { Tokenizer::from_json(with(pointer, value), "x.json"); },
                 parts);
  expect_error([] { Tokenizer::from_json("{", "x.json"); }, {"x.json", "not valid JSON"});
  expect_error([] { Tokenizer::from_json("{}", "x.json"); }, {"x.json", "'model' is missing"});
  expect_error([] { Tokenizer::from_file("/nowhere/at/all"); }, {"/nowhere/at/all", "no such"});
  const Folder folder;
  expect_error([&] { Tokenizer::from_file(folder.path()); }, {folder.path(), "tokenizer.json", "merges.txt"});
  folder.write("vocab.json", R"({"a": 0, "b": 1})");
  folder.write("merges.txt", "#version: 0.2\na b c\n");
  expect_error([&] { Tokenizer::from_file(folder.path()); }, {"merges.txt", "line 2"});
  folder.write("tokenizer_config.json", R"({"tokenizer_class": "Qwen2Tokenizer"})");
  expect_error([&] { Tokenizer::from_file(folder.path()); }, {"tokenizer_config.json", "Qwen2Tokenizer"});
}

TEST(Tokenizer, AnUnknownCharacterWithoutAnUnknownToken) {
  const std::string unigram = R"({"model": {"type": "Unigram", "unk_id": null, "vocab": [["a", -1.0]]}})";
  expect_error([&] { Tokenizer::from_json(unigram, "x")->encode("ab"); }, {"Unigram", "'b'"});
  const std::string words = R"({"model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": {"a": 0}}})";
  expect_error([&] { Tokenizer::from_json(words, "x")->encode("b"); }, {"'b'", "<unk>"});
}

}  // namespace
}  // namespace cairn::data
