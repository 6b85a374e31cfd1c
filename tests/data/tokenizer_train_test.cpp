// labels: quick
// BPE training: the reference's merges, the definition followed slowly, any number of threads.
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>

#include "tests/data/fixture.h"
#include "tests/data/tokenizer_fixture.h"
#include "trainer/data/tokenizer/pattern.h"
#include "trainer/data/tokenizer/pre_tokenizer.h"
#include "trainer/data/tokenizer/tokenizer.h"

namespace cairn::data {
namespace {

using Json = nlohmann::json;
using Merge = std::pair<std::string, std::string>;

std::vector<std::string> merges_of(const Tokenizer& tokenizer) {
  return Json::parse(tokenizer.to_json())["model"]["merges"];
}

TEST(TokenizerTrain, EqualsTheReference) {
  CAIRN_NEEDS_DATA();
  const std::string text = slurp(test_data("corpora/cs336_corpus.en"));
  const auto tokenizer = train_bpe({text}, {.vocab_size = 500});
  std::vector<std::string> expected;
  std::istringstream lines(slurp(test_data("tokenizers/bpe_train_reference/train-bpe-reference-merges.txt")));
  for (std::string line; std::getline(lines, line);) expected.push_back(line);
  EXPECT_EQ(merges_of(*tokenizer), expected);
  EXPECT_EQ(Json::parse(tokenizer->to_json())["model"]["vocab"],
            Json::parse(slurp(test_data("tokenizers/bpe_train_reference/train-bpe-reference-vocab.json"))));
  EXPECT_EQ(tokenizer->eos_id(), 0);
}

// Counts all pairs anew for every merge.
std::vector<std::string> train_slowly(const std::vector<std::string>& documents, const std::string& regex, int merges,
                                      int64_t least) {
  std::map<std::vector<std::string>, int64_t> words;
  const auto pattern = pcre2_pattern(regex);
  for (const auto& document : documents) {
    Matches matches(*pattern, document);
    for (Match m; matches.next(m);) {
      std::vector<std::string> word;
      for (size_t i = m.begin; i < m.end; ++i) word.push_back(document.substr(i, 1));
      ++words[word];
    }
  }
  const auto spelled = [](const std::string& bytes) {
    std::string out;
    for (const char c : bytes) out += byte_to_char(static_cast<unsigned char>(c));
    return out;
  };
  std::vector<std::string> out;
  while (static_cast<int>(out.size()) < merges) {
    std::map<Merge, int64_t> counts;
    for (const auto& [word, count] : words)
      for (size_t i = 0; i + 1 < word.size(); ++i) counts[{word[i], word[i + 1]}] += count;
    Merge best;
    int64_t most = 0;
    for (const auto& [pair, count] : counts)
      if (count >= most) best = pair, most = count;  // in the order of the map: the greatest pair of the most frequent
    if (most < std::max<int64_t>(least, 1)) break;
    out.push_back(spelled(best.first) + " " + spelled(best.second));
    std::map<std::vector<std::string>, int64_t> merged;
    for (const auto& [word, count] : words) {
      std::vector<std::string> now;
      for (size_t i = 0; i < word.size(); ++i) {
        if (i + 1 < word.size() && word[i] == best.first && word[i + 1] == best.second) {
          now.push_back(word[i] + word[i + 1]);
          ++i;
        } else {
          now.push_back(word[i]);
        }
      }
      merged[now] += count;
    }
    words = std::move(merged);
  }
  return out;
}

TEST(TokenizerTrain, FollowsTheDefinition) {
  std::mt19937 random(5);
  for (int round = 0; round < 12; ++round) {
    std::vector<std::string> documents;
    for (int d = 0; d < 6; ++d) {
      std::string text;
      if (round % 3 == 0) {
        text = random_text(random, 120);
        for (size_t at; (at = text.find("<|endoftext|>")) != std::string::npos;) text.erase(at, 13);
      } else {
        for (int i = 0; i < 400; ++i)
          text += (round % 3 == 1 ? "aab  " : "abcde f\n")[random() % (round % 3 == 1 ? 5 : 8)];  // runs: aaaa
      }
      documents.push_back(text);
    }
    const int64_t least = round % 2 ? 3 : 0;
    const auto trained =
        train_bpe({documents.begin(), documents.end()}, {.vocab_size = 257 + 120, .min_frequency = least});
    const auto slow = train_slowly(documents, kGpt2Pattern, 400, least);
    const auto fast = merges_of(*trained);
    // Two merges that spell the same token count as one, so there may be more merges than tokens.
    ASSERT_LE(fast.size(), slow.size());
    EXPECT_EQ(fast, std::vector<std::string>(slow.begin(), slow.begin() + fast.size())) << round;
    if (trained->vocab_size() < 257 + 120) {
      EXPECT_EQ(fast.size(), slow.size());
    }
    for (const auto& document : documents) EXPECT_EQ(trained->decode(trained->encode(document)), document);
  }
}

TEST(TokenizerTrain, ThreadsAndCutsChangeNothing) {
  std::mt19937 random(6);
  std::string text;  // longer than the stretches into which a document is cut
  std::vector<std::string> words;
  for (int i = 0; i < 4000; ++i) {
    std::string word;
    for (unsigned k = 0; k < 1 + random() % 9; ++k)
      word += static_cast<char>('a' + random() % 26 * (random() % 26) / 26);
    words.push_back(word);
  }
  while (text.size() < (5u << 20))
    text += words[random() % words.size() * (random() % words.size()) / words.size()] + (random() % 12 ? " " : ".\n");
  const auto one = train_bpe({text}, {.vocab_size = 600, .threads = 1});
  for (const int threads : {2, 3, 8})
    EXPECT_EQ(train_bpe({text}, {.vocab_size = 600, .threads = threads})->digest(), one->digest());
  // The same pattern as a group is unknown to the scanners and is not cut.
  EXPECT_EQ(merges_of(*train_bpe({text}, {.vocab_size = 600, .pattern = "(?:" + std::string(kGpt2Pattern) + ")"})),
            merges_of(*one));
  const auto half =
      text.find(". ", text.size() / 2) == std::string::npos ? text.find('\n', text.size() / 2) + 1 : text.size() / 2;
  const std::string_view a = std::string_view(text).substr(0, half), b = std::string_view(text).substr(half);
  EXPECT_EQ(train_bpe({a, b}, {.vocab_size = 600})->digest(), train_bpe({b, a}, {.vocab_size = 600})->digest());
}

TEST(TokenizerTrain, SpecialTokens) {
  const std::string text = "xy<|endoftext|>xy<sep>xy xy<|endoftext|>";
  const auto tokenizer = train_bpe({text}, {.vocab_size = 300, .special_tokens = {"<|endoftext|>", "<sep>"}});
  EXPECT_EQ(merges_of(*tokenizer), (std::vector<std::string>{"x y", "Ġ xy"}));
  EXPECT_EQ(tokenizer->vocab_size(), 260);
  EXPECT_EQ(tokenizer->token_to_id("<sep>"), 1);
  EXPECT_EQ(tokenizer->encode(text), (std::vector<int32_t>{258, 0, 258, 1, 258, 259, 0}));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
  EXPECT_EQ(train_bpe({}, {.vocab_size = 300})->vocab_size(), 257);
  try {
    train_bpe({text}, {.vocab_size = 256});
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("need 257"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace cairn::data
