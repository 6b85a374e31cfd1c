// labels: quick
// The hand-written scanners against PCRE2 on the same patterns.
#include "trainer/data/tokenizer/pattern.h"

#include <gtest/gtest.h>

#include "tests/data/tokenizer_fixture.h"
#include "trainer/data/tokenizer/tokenizer.h"

namespace cairn::data {
namespace {

const std::string kCl100k =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string kDeepseek =
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| "
    "?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|"
    "\\s+(?!\\S)|\\s+";

std::vector<std::string> pieces(const Pattern& pattern, const std::string& text) {
  std::vector<std::string> out;
  Matches matches(pattern, text);
  size_t previous = 0;
  for (Match m; matches.next(m); previous = m.end) {
    if (m.begin > previous) out.push_back("gap:" + text.substr(previous, m.begin - previous));
    out.push_back(text.substr(m.begin, m.end - m.begin));
  }
  if (previous < text.size()) out.push_back("gap:" + text.substr(previous));
  return out;
}

TEST(TokenizerPattern, ScannersFindWhatPcre2Finds) {
  std::mt19937 random(11);
  for (const std::string& regex :
       {std::string(kGpt2Pattern), kCl100k, kQwen2, kDeepseek, std::string(R"(\p{N}{1,3})"), std::string(R"(\p{N})"),
        std::string(R"(\p{N}+)"), std::string("[一-龥\u3040-ゟ゠-ヿ]+")}) {
    const auto scanner = known_pattern(regex), reference = pcre2_pattern(regex);
    ASSERT_TRUE(scanner) << regex;
    for (int i = 0; i < 3000; ++i) {
      const std::string text = random_text(random, 1 + random() % 24);
      ASSERT_EQ(pieces(*scanner, text), pieces(*reference, text)) << regex;
    }
  }
}

TEST(TokenizerPattern, CutsBeforeASingleSpaceChangeNothing) {
  std::mt19937 random(12);
  for (const std::string& regex : {std::string(kGpt2Pattern), kCl100k, kQwen2}) {
    const auto scanner = known_pattern(regex);
    ASSERT_TRUE(scanner->cuts_before_single_space());
    for (int i = 0; i < 2000; ++i) {
      const std::string left = random_text(random, 6) + ".", right = " x" + random_text(random, 6);
      auto apart = pieces(*scanner, left);
      for (const auto& piece : pieces(*scanner, right)) apart.push_back(piece);
      ASSERT_EQ(pieces(*scanner, left + right), apart) << left << "|" << right;
    }
  }
}

TEST(TokenizerPattern, OnigurumasMeaningOfClasses) {
  const std::tuple<std::string, std::string, std::vector<std::string>> cases[] = {
      {R"(\s)", "a\u180Eb\u3000c", {"gap:a\u180Eb", "\u3000", "gap:c"}},  // U+180E is no space
      {R"(\h+)", "xDEADz", {"gap:x", "DEAD", "gap:z"}},                   // hexadecimal digits
      {R"(\w+)", "né²_\u0301 ", {"né²_\u0301", "gap: "}},                 // marks and superscripts are word characters
      {R"(\W+)", "a-+b", {"gap:a", "-+", "gap:b"}},
      {R"(\p{L}+)", "\U00031350x\u2FFC", {"\U00031350x", "gap:\u2FFC"}},  // a letter of Unicode 15
      {R"([^\p{L}]+)", "1\U00031350", {"1", "gap:\U00031350"}},
      {R"(\p{Han}+)", "漢ーa", {"漢", "gap:ーa"}},  // the script, not its extensions
      {R"(a*)", "baa", {"", "gap:b", "aa"}},
      {R"(^x$)", "x\nx", {"x", "gap:\n", "x"}},
  };
  for (const auto& [regex, text, expected] : cases) EXPECT_EQ(pieces(*pcre2_pattern(regex), text), expected) << regex;
  for (const char* refused : {"[[:alpha:]]", "[a[b]]", "[a&&b]", R"(\X)", R"(\R)", "[a", "a\\", R"(\pL)"})
    EXPECT_THROW(pcre2_pattern(refused), std::runtime_error) << refused;
}

}  // namespace
}  // namespace cairn::data
