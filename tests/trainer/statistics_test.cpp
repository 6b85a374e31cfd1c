// labels: quick
// Statistics of an evaluation against enumeration by hand; reasoning between tags.
#include "trainer/rl/statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

#include "trainer/rl/think.h"

namespace cairn::rl {
namespace {
const double kNone = std::nan("");

// Share of the subsets of k answers of n that hold one of the first c, counted one by one.
double enumerated(int n, int c, int k) {
  int all = 0, hit = 0;
  for (int set = 0; set < 1 << n; ++set) {
    if (__builtin_popcount(static_cast<unsigned>(set)) != k) continue;
    ++all;
    hit += (set & ((1 << c) - 1)) != 0;
  }
  return static_cast<double>(hit) / all;
}

TEST(Statistics, PassAtKIsTheShareOfSubsets) {
  for (int n = 1; n <= 10; ++n)
    for (int c = 0; c <= n; ++c)
      for (int k = 1; k <= n; ++k)
        EXPECT_NEAR(pass_at_k(n, c, k), enumerated(n, c, k), 1e-14) << n << " " << c << " " << k;
  // Binomials of this size overflow; by logarithms 1 - C(9900, 100) / C(10000, 100).
  const auto log_choose = [](double n, double k) {
    return std::lgamma(n + 1) - std::lgamma(k + 1) - std::lgamma(n - k + 1);
  };
  EXPECT_NEAR(pass_at_k(10000, 100, 100), 1 - std::exp(log_choose(9900, 100) - log_choose(10000, 100)), 1e-8);
  EXPECT_THROW(pass_at_k(4, 5, 1), std::invalid_argument);
  EXPECT_THROW(pass_at_k(4, 1, 5), std::invalid_argument);
  EXPECT_THROW(pass_at_k(4, 1, 0), std::invalid_argument);
  EXPECT_THROW(pass_at_k(4, -1, 1), std::invalid_argument);
}

TEST(Statistics, AccuracyHasTheErrorOfProblems) {
  const auto even = accuracy({{1, 0}, {1, 1}, {0, 0}, {1, kNone}});
  EXPECT_EQ(even.problems, 4);
  EXPECT_DOUBLE_EQ(even.mean, (0.5 + 1 + 0 + 1) / 4);
  // Means 0.5 1 0 1: variance with n - 1 is (0.015625 + 2 * 0.140625 + 0.390625) / 3.
  EXPECT_DOUBLE_EQ(even.standard_error, std::sqrt((0.015625 + 2 * 0.140625 + 0.390625) / 3 / 4));
  // Two copies of every answer are no more evidence.
  EXPECT_DOUBLE_EQ(accuracy({{1, 0, 1, 0}, {1, 1, 1, 1}, {0, 0, 0, 0}, {1, 1}}).standard_error, even.standard_error);
  const auto one = accuracy({{1, 0}});
  EXPECT_EQ(one.mean, 0.5);
  EXPECT_TRUE(std::isnan(one.standard_error));
  EXPECT_TRUE(std::isnan(accuracy({{kNone}}).mean));
  EXPECT_EQ(accuracy({{kNone}, {1}}).problems, 1);
}

TEST(Statistics, PassAtKOverProblems) {
  const auto two = pass_at_k({{1, 0, 0, 0}, {0, 0, 0, 0}, {1, 1, kNone, 0.5}, {1}}, 2);
  EXPECT_EQ(two.problems, 3) << "one answer says nothing of two";
  EXPECT_DOUBLE_EQ(two.mean, (0.5 + 0 + 1) / 3);
  EXPECT_EQ(pass_at_k({{1}}, 2).problems, 0);
  EXPECT_THROW(pass_at_k({{1}}, 0), std::invalid_argument);
}

TEST(Statistics, TheMajorityVotes) {
  const std::vector<Vote> right = {{"7", 1}, {"8", 0}, {"7", 1}};
  EXPECT_EQ(majority(right), 1);
  const std::vector<Vote> tie = {{"7", 1}, {"8", 0}};
  EXPECT_EQ(majority(tie), 0.5);
  const std::vector<Vote> silent = {{"", 0}, {"", 0}, {"7", 1}};
  EXPECT_EQ(majority(silent), 1) << "who gives no answer does not vote";
  const std::vector<Vote> none = {{"", 0}};
  EXPECT_EQ(majority(none), 0);
  EXPECT_EQ(majority({}), 0);
  const std::vector<Vote> unknown = {{"7", kNone}, {"7", kNone}, {"8", 1}};
  EXPECT_TRUE(std::isnan(majority(unknown)));
  const auto estimate =
      majority_at_k({{{"7", 1}, {"8", 0}, {"8", 0}, {"7", 1}, {"7", 1}, {"8", 0}, {"7", 1}}, {{"1", 1}}}, 3);
  EXPECT_EQ(estimate.problems, 1);
  EXPECT_EQ(estimate.mean, 0.5) << "8 wins the first three, 7 the next; the last answer fills no group";
  EXPECT_THROW(majority_at_k({}, 0), std::invalid_argument);
}

TEST(Statistics, Lengths) {
  const auto some = lengths({5, 1, 9, 2});
  EXPECT_EQ(some.count, 4);
  EXPECT_EQ(some.mean, 4.25);
  EXPECT_EQ(some.least, 1);
  EXPECT_EQ(some.median, 2);
  EXPECT_EQ(some.most, 9);
  EXPECT_TRUE(std::isnan(lengths({}).mean));
}

TEST(Think, ReasoningAndAnswerComeApart) {
  struct Case {
    const char* text;
    bool by_prompt;
    const char *reasoning, *answer;
  };
  for (const auto& [text, by_prompt, reasoning, answer] :
       {Case{"<think>a</think>b", false, "a", "b"}, Case{"a</think>b", true, "a", "b"},
        Case{"a</think>b", false, "a", "b"}, Case{"<think>a", false, "a", ""}, Case{"a", true, "a", ""},
        Case{"a", false, "", "a"}, Case{"<think>a</think>b</think>c", false, "a</think>b", "c"},
        Case{"</think><think>", false, "", "<think>"}, Case{"x<think>a</think>", false, "a", ""},
        Case{"", false, "", ""}}) {
    const auto parts = split_reasoning(text, {}, by_prompt);
    EXPECT_EQ(parts.reasoning, reasoning) << text;
    EXPECT_EQ(parts.answer, answer) << text;
  }
  EXPECT_EQ(split_reasoning("[[a]]b", {"[[", "]]"}).answer, "b");
}

TEST(Think, TokensAreCountedApart) {
  const auto count = [](const std::vector<std::string>& pieces, bool by_prompt = false) {
    const auto tokens = count_reasoned(pieces, {}, by_prompt);
    return std::pair(tokens.reasoning, tokens.answer);
  };
  EXPECT_EQ(count({"<think>", "a", "b", "</think>", "c"}), std::pair(int64_t{4}, int64_t{1}));
  EXPECT_EQ(count({"<th", "ink>", "a</", "thi", "nk>c", "d"}), std::pair(int64_t{5}, int64_t{1}));
  EXPECT_EQ(count({"a", "</think>", "b", "c"}, true), std::pair(int64_t{2}, int64_t{2}));
  EXPECT_EQ(count({"<think>", "a"}), std::pair(int64_t{2}, int64_t{0}));
  EXPECT_EQ(count({"a", "b"}, true), std::pair(int64_t{2}, int64_t{0}));
  EXPECT_EQ(count({"a", "b"}), std::pair(int64_t{0}, int64_t{2}));
}

TEST(Think, EarlierTurnsLoseTheirReasoning) {
  std::vector<Message> messages = {
      {"system", "s"},       {"user", "<think>mine</think> stays"}, {"assistant", "<think>a</think>\n\nfirst"},
      {"user", "q"},         {"assistant", "<think>b</think>call"}, {"tool", "r"},
      {"assistant", "plain"}};
  auto expected = messages;
  expected[2].content = "first";
  drop_earlier_reasoning(messages);
  EXPECT_EQ(messages, expected);
  std::vector<Message> open = {{"assistant", "<think>cut off"}, {"assistant", "no tags"}, {"user", "q"}};
  drop_earlier_reasoning(open);
  EXPECT_EQ(open[0].content, "");
  EXPECT_EQ(open[1].content, "no tags");
}

}  // namespace
}  // namespace cairn::rl
