// labels: quick
// A trained tokenizer is trained once: what the cache gives back is the tokenizer that the training gave.
#include "trainer/data/trained_tokenizer.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/data/fixture.h"

namespace cairn::data {
namespace {

namespace fs = std::filesystem;

std::string words(int seed) {
  std::string text;
  for (int i = 0; i < 400; ++i) text += fmt::format("word{} stone{} ", (i * 7 + seed) % 31, (i * 5 + seed) % 17);
  return text;
}

std::vector<fs::path> entries(const std::string& cache) {
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(cache + "/tokenizers"))
    if (entry.is_directory()) found.push_back(entry.path());
  return found;
}

std::string saved(const Tokenizer& tokenizer, const std::string& folder) {
  tokenizer.save(folder);
  return read_whole(folder + "/tokenizer.json") + read_whole(folder + "/tokenizer_config.json");
}

TEST(TrainedTokenizer, TheCacheGivesTheSame) {
  const Folder folder;
  const std::string a = folder.write("a.txt", words(1)), b = folder.write("b.txt", words(2)), cache = folder / "cache";
  const std::vector<SourceOptions> sources = {text_source(a), text_source(b)};
  const std::string one = words(1), two = words(2);
  const auto plain = train_bpe({one, two}, {.vocab_size = 300});
  for (const char* name : {"first", "second"}) {
    const auto tokenizer = trained_tokenizer(sources, 0, {.vocab_size = 300}, cache);
    EXPECT_EQ(tokenizer->to_json(), plain->to_json()) << name;
    EXPECT_EQ(tokenizer->digest(), plain->digest()) << name;
    EXPECT_EQ(tokenizer->eos_id(), plain->eos_id()) << name;
    EXPECT_EQ(tokenizer->bos_id(), plain->bos_id()) << name;
    EXPECT_EQ(tokenizer->encode(one, true), plain->encode(one, true)) << name;
    EXPECT_EQ(saved(*tokenizer, folder / name), saved(*plain, folder / "plain")) << name;
    EXPECT_EQ(entries(cache).size(), 1u) << name;
  }
}

TEST(TrainedTokenizer, TheEntryIsReadAndNotMadeAgain) {
  const Folder folder;
  const std::string cache = folder / "cache";
  const std::vector<SourceOptions> sources = {text_source(folder.write("a.txt", words(1)))};
  trained_tokenizer(sources, 0, {.vocab_size = 300}, cache);
  // Another tokenizer in its place, whole: who trains again would not see it.
  const auto other = Tokenizer::bytes();
  const std::string entry = entries(cache).at(0).string();
  other->save(entry);
  write_whole(entry + "/digest", fmt::format("{:016x}\n", other->digest()));
  EXPECT_EQ(trained_tokenizer(sources, 0, {.vocab_size = 300}, cache)->digest(), other->digest());
  // A damaged one is made again.
  const std::string text = words(1);
  const auto plain = train_bpe({text}, {.vocab_size = 300});
  for (const std::string& bytes : {std::string("{"), other->to_json(), std::string()}) {
    write_whole(entry + "/digest", "0\n");
    write_whole(entry + "/tokenizer.json", bytes);
    EXPECT_EQ(trained_tokenizer(sources, 0, {.vocab_size = 300}, cache)->digest(), plain->digest());
  }
}

TEST(TrainedTokenizer, WhatItDependsOnIsTheKey) {
  const Folder folder;
  const std::string a = folder.write("a.txt", words(1)), cache = folder / "cache";
  auto source = text_source(a);
  trained_tokenizer({source}, 0, {.vocab_size = 300}, cache);
  trained_tokenizer({source}, 0, {.vocab_size = 301}, cache);
  EXPECT_EQ(entries(cache).size(), 2u);
  source.separator = "word3";
  trained_tokenizer({source}, 0, {.vocab_size = 300}, cache);
  trained_tokenizer({source}, 0.5, {.vocab_size = 300}, cache);
  EXPECT_EQ(entries(cache).size(), 4u);
  folder.write("a.txt", words(3));
  const auto changed = trained_tokenizer({text_source(a)}, 0, {.vocab_size = 300}, cache);
  EXPECT_EQ(entries(cache).size(), 5u);
  const std::string text = words(3);
  EXPECT_EQ(changed->digest(), train_bpe({text}, {.vocab_size = 300})->digest());
  source.name = "other";  // names and weights do not count
  source.weight = 3;
  trained_tokenizer({source}, 0.5, {.vocab_size = 300}, cache);
  EXPECT_EQ(entries(cache).size(), 6u);  // new bytes under that separator and fraction
}

}  // namespace
}  // namespace cairn::data
