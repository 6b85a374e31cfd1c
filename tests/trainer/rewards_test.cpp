// labels: quick
// How answers are judged: numbers, letters, texts, formats, lengths, expressions, sums; hostile texts; the settings
// `rewards:`.
#include <algorithm>
#include <chrono>

#include "tests/trainer/task_fixture.h"
#include "trainer/rl/rewards/answer.h"
#include "trainer/rl/rewards/expression.h"
#include "trainer/rl/rewards/number.h"
#include "trainer/rl/rewards/pattern.h"

namespace cairn::rl {
namespace {

double seconds_of(const std::function<void()>& run) {
  const auto start = std::chrono::steady_clock::now();
  run();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::string repeated(const std::string& piece, int times) {
  std::string out;
  for (int i = 0; i < times; ++i) out += piece;
  return out;
}

TEST(Rewards, ExactArithmeticOfAnySize) {
  const auto digits = [](const std::string& text) { return Integer::from_digits(text); };
  EXPECT_EQ((digits("123456789012345678901234567890") * digits("987654321098765432109876543210")).text(),
            "121932631137021795226185032733622923332237463801111263526900");
  EXPECT_EQ((digits("1000000000000000000") - digits("1")).text(), "999999999999999999");
  EXPECT_EQ((Integer(5) - Integer(12)).text(), "-7");
  EXPECT_EQ((Integer(-5) + Integer(5)).text(), "0");
  EXPECT_FALSE((Integer(-5) * Integer(0)).negative());
  EXPECT_EQ(digits("000").text(), "0");
  EXPECT_EQ(Integer(INT64_MIN).text(), "-9223372036854775808");
  EXPECT_EQ((Rational{1, 3} + Rational{1, 6}).text(), "1/2");
  EXPECT_EQ((Rational{1, 3} / Rational{-2, 1}).text(), "-1/6");
  EXPECT_EQ((Rational{1, 3} * Rational{3, 1}), (Rational{7, 7}));
}

TEST(Rewards, NumbersAreReadExactly) {
  const std::vector<std::pair<std::string, std::string>> same = {
      {"1,000", "1000"},
      {"1000.0", "1000"},
      {"1,234,567.50", "2469135/2"},
      {".5", "1/2"},
      {"5.", "5"},
      {"-3", "-3"},
      {"+4", "4"},
      {"- 3", "-3"},
      {"$18", "18"},
      {"-$2.50", "-5/2"},
      {"$-2.50", "-5/2"},
      {"50%", "1/2"},
      {"50\\%", "1/2"},
      {"3/4", "3/4"},
      {"6/8", "3/4"},
      {"-3/4", "-3/4"},
      {"3 / 4", "3/4"},
      {"\\frac{3}{4}", "3/4"},
      {"\\dfrac{6}{8}", "3/4"},
      {"-\\frac{1}{2}", "-1/2"},
      {"\\frac12", "1/2"},
      {"1\\frac{1}{2}", "3/2"},
      {"1 1/2", "3/2"},
      {"1{,}000", "1000"},
      {"1\\,000", "1000"},
      {"$\\frac{-3}{4}$", "-3/4"},
      {"1e3", "1000"},
      {"2.5e-1", "1/4"},
      {"0.1", "1/10"},
      {"0.10000", "1/10"},
      {"007", "7"},
      {"**18**", "18"},
      {"\\(18\\)", "18"},
      {"(18)", "18"},
      {"\xE2\x88\x92"
       "5",
       "-5"},
      {"-0", "0"},
      {"\xE2\x82\xAC"
       "7",
       "7"},
      {"0.3333333333333333333333", "3333333333333333333333/10000000000000000000000"}};
  for (const auto& [text, value] : same) {
    const auto number = whole_number(text);
    ASSERT_TRUE(number) << text;
    EXPECT_EQ(number_text(*number), value) << text;
  }
  for (const char* text : {"",
                           " ",
                           "abc",
                           "-",
                           "$",
                           ".",
                           "1,00",
                           "1 2",
                           "1/0",
                           "\\frac{1}{0}",
                           "\\frac{x}{2}",
                           "1.2.3",
                           "1/2/2020",
                           "\\frac{1}",
                           "\\frac",
                           "x2",
                           "5-3",
                           "1e99999",
                           "18 dollars",
                           "10^2"})
    EXPECT_FALSE(whole_number(text)) << text;
}

TEST(Rewards, TheLastNumberOfAText) {
  const std::vector<std::pair<std::string, std::string>> last = {{"so 3 + 4 = 7.", "7"},
                                                                 {"It is 10-3", "3"},
                                                                 {"the range 10 - 3", "3"},
                                                                 {"the change is -3", "-3"},
                                                                 {"x = -3", "-3"},
                                                                 {"(-3)", "-3"},
                                                                 {"costs $1,250.50 today", "2501/2"},
                                                                 {"1,2,3", "3"},
                                                                 {"a list: 1, 2, 30", "30"},
                                                                 {"He has 18. Then H2O and x2", "18"},
                                                                 {"equals 5 cm^2", "5"},
                                                                 {"is $\\frac{3}{4}$ of it", "3/4"},
                                                                 {"the answer is $\\frac{x}{2}$, so 8 or", "8"},
                                                                 {"half, 50 percent", "1/2"},
                                                                 {"the percentage is 50 percentage points", "50"},
                                                                 {"on 1/2/2020", "none"},
                                                                 {"version 1.2.3", "none"},
                                                                 {"3 \\times 6 = 18", "18"},
                                                                 {"3\\cdot5", "5"},
                                                                 {"18cm", "18"},
                                                                 {"5 apples", "5"},
                                                                 {"no number at all", "none"}};
  for (const auto& [text, value] : last) {
    const auto number = last_number(text);
    EXPECT_EQ(number ? number_text(*number) : "none", value) << text;
  }
}

TEST(Rewards, NumberEquality) {
  const auto reward = reward_of("{name: number}");
  const auto right = [&](const std::string& reference, const std::string& completion) {
    EXPECT_EQ(score(*reward, reference, completion), 1) << completion;
  };
  const auto wrong = [&](const std::string& reference, const std::string& completion) {
    EXPECT_EQ(score(*reward, reference, completion), 0) << completion;
  };
  right("1000", "so #### 1,000");
  right("1000", "#### 1000.0\nmore 7");
  right("18", "first #### 3\nthen #### 18 dollars");
  right("18", "\\boxed{18}");
  right("18", "\\boxed{\\text{about } 18}");
  right("1/2", "therefore \\boxed{\\frac{1}{2}} of 7");
  right("1/2", "0.5");
  right("0.5", "50%");
  right("50", "it is 50%");
  right("18", "<answer> $18 </answer>");
  right("18", "The answer is 18.");
  right("#### 18", "18");
  right("\\boxed{18}", "18");
  right("0.1", "#### 0.1");
  right("18", "<think>#### 7</think>\n#### 18");
  wrong("18", "\\boxed{19}");
  wrong("18", "\\boxed{18 or 19}");
  wrong("18", "\\boxed{} but 18");
  wrong("18", "#### nineteen, not 17 but 18 ");
  wrong("18", "nothing");
  wrong("18", "");
  wrong("18", "<think>it is 18");
  wrong("18", "<think>#### 18</think>");
  wrong("0.1", "#### 0.10000000000000000001");
  wrong("18", "-18");
  wrong("50", "0.5%");
  wrong("1000", "1,0000");
  EXPECT_TRUE(std::isnan(score(*reward, "no number", "18")));
  // A prompt that ended with <think>: until it closes there is no answer.
  EXPECT_EQ(score(*reward, problem_of("18"), "18", {}, true), 0);
  EXPECT_EQ(score(*reward, problem_of("18"), "3</think>18", {}, true), 1);
  const auto everywhere = reward_of("{name: number, after_think: false}");
  EXPECT_EQ(score(*everywhere, "18", "<think>it is 18"), 1);
  const auto hashes = reward_of("{name: number, from: [hashes]}");
  EXPECT_EQ(score(*hashes, "18", "it is 18"), 0);
  EXPECT_EQ(score(*hashes, "18", "#### 18"), 1);
}

TEST(Rewards, AnswersForAVote) {
  const auto number = reward_of("{name: number}"), choice = reward_of("{name: choice}");
  const Problem problem = problem_of("A");
  const auto answer = [&](const Reward& reward, const std::string& text) {
    Sample sample;
    sample.problem = &problem;
    sample.completion = text;
    return reward.answer(sample).value_or("none");
  };
  EXPECT_EQ(answer(*number, "#### 1,000.50"), answer(*number, "\\boxed{2001/2}"));
  EXPECT_EQ(answer(*number, "none"), "none");
  EXPECT_EQ(answer(*choice, "The answer is (B)"), "B");
}

// The data set's own answers score 1, as they stand and as a number alone; a changed number scores 0.
TEST(Rewards, EveryReferenceOfGsm8kAndSvamp) {
  CAIRN_NEEDS_DATA();
  const auto reward = reward_of("{name: number}");
  int checked = 0;
  const auto check = [&](const std::string& reference, const std::string& answer) {
    ASSERT_EQ(score(*reward, reference, answer), 1) << answer;
    ASSERT_EQ(score(*reward, reference, "The answer is \\boxed{" + reference + "}."), 1) << reference;
    ASSERT_EQ(score(*reward, reference, "I think that it is $" + reference + "."), 1) << reference;
    std::string other = reference;
    char& first = *std::find_if(other.begin(), other.end(), ::isdigit);
    first = first == '9' ? '8' : static_cast<char>(first + 1);
    ASSERT_EQ(score(*reward, reference, "#### " + other), 0) << other;
    ASSERT_EQ(score(*reward, reference, "#### " + reference + "1"), 0) << reference;
    ++checked;
  };
  for (const char* file : {"train", "test"}) {
    const auto path = test_data(std::string("gsm8k/") + file + ".jsonl");
    const auto task = task_of("{name: data, file: " + path +
                              ", prompt: \"{question}\", answer: \"{answer}\", extract: hashes, held_out: 0}");
    for (int64_t i = 0; i < *task->size(Side::train); ++i) {
      const auto problem = task->problem(Side::train, 0, i);
      check(problem.reference, problem.fields["answer"].get<std::string>());
    }
  }
  EXPECT_EQ(checked, 7473 + 1319);
  const auto task = task_of("{name: data, file: " + test_data("svamp/SVAMP.json") +
                            ", prompt: \"{Body} {Question}\", answer: \"{Answer}\", held_out: 0}");
  for (int64_t i = 0; i < *task->size(Side::train); ++i) {
    const auto problem = task->problem(Side::train, 0, i);
    check(std::to_string(static_cast<int64_t>(problem.fields["Answer"].get<double>())), "so #### " + problem.reference);
  }
  EXPECT_EQ(checked, 7473 + 1319 + 1000);
}

TEST(Rewards, ChoiceOfALetter) {
  const auto reward = reward_of("{name: choice}");
  const auto chosen = [&](const std::string& text) {
    std::string letters;
    for (char letter = 'A'; letter <= 'J'; ++letter)
      if (score(*reward, std::string(1, letter), text) == 1) letters += letter;
    return letters;
  };
  EXPECT_EQ(chosen("(A) is tempting, but the answer is (B)."), "B");
  EXPECT_EQ(chosen("**Answer: C**"), "C");
  EXPECT_EQ(chosen("The correct answer is **D**: because A and B fail."), "D");
  EXPECT_EQ(chosen("\\boxed{\\text{(C)}}"), "C");
  EXPECT_EQ(chosen("#### b"), "B");
  EXPECT_EQ(chosen("<answer>B. Paris</answer>"), "B");
  EXPECT_EQ(chosen("The answer is option C"), "C");
  EXPECT_EQ(chosen("I choose option B, since A is false."), "B");
  EXPECT_EQ(chosen("A cat sat. Thus D"), "D");
  EXPECT_EQ(chosen("D\n\nA good reason is that I say so."), "D");
  EXPECT_EQ(chosen("(A) no. (C) yes."), "C");
  EXPECT_EQ(chosen("B"), "B");
  EXPECT_EQ(chosen("The answer is a good one."), "");
  EXPECT_EQ(chosen("The answer is Bern."), "");
  EXPECT_EQ(chosen("\\boxed{Both A and B}"), "");
  EXPECT_EQ(chosen(""), "");
  EXPECT_EQ(chosen("<think>(B)</think> The answer is (C)"), "C");
  EXPECT_TRUE(std::isnan(score(*reward, "7", "(A)")));
  const Problem two = problem_of("B", {{"options", {"yes", "no"}}});
  EXPECT_EQ(score(*reward, two, "(B), not (D)"), 0) << "the last bracket is no option: no answer";
  EXPECT_EQ(score(*reward, two, "the answer is (B)"), 1);
  EXPECT_TRUE(std::isnan(score(*reward, problem_of("D", {{"options", {"yes", "no"}}}), "(D)")));
}

TEST(Rewards, EveryLetterOfLogiqa) {
  CAIRN_NEEDS_DATA();
  const auto reward = reward_of("{name: choice}");
  for (const char* file : {"v2_dev", "v2_test"}) {
    const auto path = test_data(std::string("logiqa/") + file + ".jsonl");
    const auto task =
        task_of("{name: data, file: " + path +
                ", prompt: \"{text}\\n{question}\\n{options|letters}\", answer: \"{answer|letter}\", held_out: 0}");
    for (int64_t i = 0; i < *task->size(Side::train); ++i) {
      const auto problem = task->problem(Side::train, 0, i);
      ASSERT_EQ(problem.reference[0] - 'A', problem.fields["answer"].get<int>());
      for (char letter = 'A'; letter <= 'D'; ++letter) {
        const std::string one(1, letter), option = problem.fields["options"][letter - 'A'].get<std::string>();
        const double right = one == problem.reference ? 1 : 0;
        ASSERT_EQ(score(*reward, problem, "The answer is (" + one + ")"), right);
        ASSERT_EQ(score(*reward, problem, "#### " + one + ". " + option), right);
        ASSERT_EQ(score(*reward, problem, problem.prompt + "\nAnswer: " + one), right);
        ASSERT_EQ(score(*reward, problem, "It has to be (" + one + ") "), right);
      }
    }
  }
}

TEST(Rewards, ExactMatch) {
  const auto plain = reward_of("{name: exact_match}");
  EXPECT_EQ(score(*plain, "New York", " New \n York "), 1);
  EXPECT_EQ(score(*plain, "New York", "new york"), 0);
  EXPECT_EQ(score(*plain, "New York", "It is \\boxed{New York}, I think"), 1);
  EXPECT_EQ(score(*plain, "New York", "It is New York"), 0);
  const auto strict = reward_of("{name: exact_match, normalize: []}");
  EXPECT_EQ(score(*strict, "a  b", "a b"), 0);
  const auto loose = reward_of("{name: exact_match, normalize: [space, case, punctuation, articles]}");
  EXPECT_EQ(score(*loose, "the Netherlands", "<answer>Netherlands.</answer>"), 1);
  EXPECT_EQ(score(*loose, "1 2 3", "#### 1, 2, 3"), 1);
  EXPECT_EQ(score(*loose, "theatre", "atre"), 0);
  const auto line = reward_of("{name: exact_match, from: [last_line]}");
  EXPECT_EQ(score(*line, "yes", "I say:\nyes\n\n"), 1);
}

TEST(Rewards, FormatAndThinkTags) {
  const auto format = reward_of("{name: format, pattern: \"(?s)^<think>.*</think>\\\\s*<answer>.+</answer>\\\\s*$\"}");
  EXPECT_EQ(score(*format, "x", "<think>a\nb</think>\n<answer>7</answer>\n"), 1);
  EXPECT_EQ(score(*format, "x", "<think>a\nb</think>\n<answer></answer>"), 0);
  // The cases of TRL's pattern ^<think>(?!.*<think>)(.*?)</think>.*$.
  const auto think = reward_of("{name: think_format_reward}");
  EXPECT_EQ(score(*think, "x", "<think>\nreasoning\n</think>\nanswer"), 1);
  EXPECT_EQ(score(*think, "x", "<think></think>"), 1);
  EXPECT_EQ(score(*think, "x", "<think>\nreasoning\nanswer"), 0);
  EXPECT_EQ(score(*think, "x", " <think>a</think>b"), 0);
  EXPECT_EQ(score(*think, "x", "<think>a<think>b</think>c"), 0);
  EXPECT_EQ(score(*think, "x", "<think>a</think><think>"), 0);
  EXPECT_EQ(score(*think, "x", "<think>a</think>b</think>"), 1);
  EXPECT_EQ(score(*think, "x", "a</think>b"), 0);
  EXPECT_EQ(score(*think, problem_of("x"), "a</think>b", {}, true), 1);
}

// Patterns that explode on a text are given up after a fixed number of steps.
TEST(Rewards, HostileTextsDoNotHang) {
  Sample sample;
  const Problem problem = problem_of("18", {{"numbers", {1, 2}}, {"target", 3}});
  sample.problem = &problem;
  const auto a = repeated("a", 200000) + "-c=!";
  sample.completion = a;
  for (const char* pattern :
       {"^(a+)+$", "(a*)*c$", "(a|aa)+c$", ".*.*.*=$", "(?s)(.*)(.*)(.*)=$", "([a-z]+)*=$", "^(?:.?){30}a{30}=$"}) {
    const auto reward = reward_of("{name: format, pattern: \"" + std::string(pattern) + "\"}");
    std::vector<Verdict> verdict;
    EXPECT_LT(seconds_of([&] { verdict = reward->judge(std::span(&sample, 1)); }), 10) << pattern;
    EXPECT_EQ(verdict[0].reward, 0);
    EXPECT_EQ(verdict[0].extra, (Json{{"gave_up", true}})) << pattern;
  }
  EXPECT_EQ(Pattern("!$").search(a), Pattern::Outcome::found) << "an honest search of a long text ends";
  const std::vector<std::string> texts = {
      repeated("\\boxed{", 100000),  repeated("\\frac{", 100000), repeated("(", 300000),
      repeated("9", 500000),         repeated("1,", 300000),      repeated("<answer>", 50000),
      repeated("-", 300000),         repeated("$", 300000),       repeated("####", 100000),
      repeated("answer is ", 50000), repeated("1.", 300000),      repeated("\xff\xfe", 200000),
      repeated("(A)", 100000),       repeated("1/", 300000),      repeated("<think>", 50000)};
  for (const char* name : {"number", "choice", "exact_match", "countdown", "think_format_reward"}) {
    const auto reward = reward_of("{name: " + std::string(name) + "}");
    for (const auto& text : texts) {
      sample.completion = text;
      EXPECT_LT(seconds_of([&] { reward->judge(std::span(&sample, 1)); }), 10) << name << " " << text.substr(0, 10);
    }
  }
}

TEST(Rewards, PatternsFindTheirGroup) {
  std::string group;
  EXPECT_EQ(Pattern("a(.)c").search("abc adc", &group), Pattern::Outcome::found);
  EXPECT_EQ(group, "b");
  EXPECT_EQ(Pattern("a(.)c").search_last("abc adc", &group), Pattern::Outcome::found);
  EXPECT_EQ(group, "d");
  EXPECT_EQ(Pattern("x*").search_last("axxb", &group), Pattern::Outcome::found);
  EXPECT_EQ(Pattern("\\xff").search("\xff", &group), Pattern::Outcome::none) << "no UTF-8";
  EXPECT_EQ(Pattern("b").search("\xff\xff"
                                "b",
                                &group),
            Pattern::Outcome::found);
  expect_error([] { Pattern("a(b"); }, {"`a(b`", "not understood", "missing"});
}

TEST(Rewards, LengthsAreShaped) {
  const auto of = [](Reward& reward, int64_t tokens, const std::string& text = "") {
    return score(reward, problem_of("18"), text, std::vector<int32_t>(static_cast<size_t>(tokens), 1));
  };
  const auto overlong = reward_of("{name: soft_overlong_punishment_reward, soft_punish_cache: 20}", 100);
  EXPECT_EQ(of(*overlong, 80), 0);
  EXPECT_EQ(of(*overlong, 90), -0.5);
  EXPECT_EQ(of(*overlong, 100), -1);
  EXPECT_EQ(of(*overlong, 101), -1);
  const auto none = reward_of("{name: soft_overlong_punishment_reward, max_completion_len: 100}");
  EXPECT_EQ(of(*none, 100), 0);
  EXPECT_EQ(of(*none, 101), -1);
  const auto cosine = reward_of("{name: cosine_scaled_reward, max_completion_len: 100}");
  EXPECT_DOUBLE_EQ(of(*cosine, 50, "\\boxed{18}"), 0.75);
  EXPECT_DOUBLE_EQ(of(*cosine, 50, "\\boxed{19}"), -0.75);
  EXPECT_DOUBLE_EQ(of(*cosine, 0, "18"), 1);
  EXPECT_DOUBLE_EQ(of(*cosine, 400, "18"), 0.5);
  EXPECT_DOUBLE_EQ(of(*cosine, 0, "19"), -1);
  EXPECT_DOUBLE_EQ(of(*cosine, 400, "19"), -0.5);
  const auto repetition = reward_of("{name: repetition_penalty_reward, ngram_size: 2}");
  EXPECT_EQ(score(*repetition, problem_of(""), "", {1, 2, 3, 4}), 0);
  EXPECT_EQ(score(*repetition, problem_of(""), "", {5, 5, 5, 5, 5}), -0.75);
  EXPECT_EQ(score(*repetition, problem_of(""), "", {5}), 0);
  const auto exact = reward_of("{name: length, target: 10, coefficient: 0.01}");
  EXPECT_DOUBLE_EQ(of(*exact, 4), -0.06);
  EXPECT_DOUBLE_EQ(of(*exact, 14), -0.04);
  const auto most = reward_of("{name: length, target: 10, coefficient: 0.01, at_most: true}");
  EXPECT_EQ(of(*most, 4), 0);
  EXPECT_DOUBLE_EQ(of(*most, 14), -0.04);
  expect_error([] { reward_of("{name: soft_overlong_punishment_reward}"); }, {"max_completion_len is not given"});
  expect_error([] { reward_of("{name: soft_overlong_punishment_reward, soft_punish_cache: 20}", 10); },
               {"soft_punish_cache is 20", "at most 10"});
}

TEST(Rewards, ExpressionsAreEvaluatedExactly) {
  const auto value = [](const std::string& text) {
    const auto expression = parse_expression(text);
    return !expression ? "refused" : expression->value ? expression->value->text() : "by zero";
  };
  EXPECT_EQ(value("1 + 2 * 3"), "7");
  EXPECT_EQ(value("(1 + 2) * 3"), "9");
  EXPECT_EQ(value("10 - 3 - 2"), "5");
  EXPECT_EQ(value("8 / 4 / 2"), "1");
  EXPECT_EQ(value("8 / (3 - 8 / 3)"), "24");
  EXPECT_EQ(value("-(2 - 5)"), "3");
  EXPECT_EQ(value("2 * -3"), "-6");
  EXPECT_EQ(value("[1 + 2] \\times 3 \xC3\xB7 4"), "9/4");
  EXPECT_EQ(value("99999999999 * 99999999999 - 99999999998 * 100000000000"), "1");
  EXPECT_EQ(value("1 / (2 - 2)"), "by zero");
  for (const char* text : {"", "1 +", "(1", "1)", "2(3)", "2 3", "1.5", "2 ** 3", "2 ^ 3", "a", "__import__('os')",
                           "1; 2", "1 // 2", "()", "1e3", "+"})
    EXPECT_EQ(value(text), "refused") << text;
  EXPECT_EQ(value(repeated("(", 90) + "1" + repeated(")", 90)), "1");
  EXPECT_EQ(value(repeated("(", 400) + "1" + repeated(")", 400)), "refused");
  EXPECT_EQ(value(repeated("-", 400) + "1"), "refused");
  EXPECT_EQ(value(repeated("1+", 600) + "1"), "refused");
}

TEST(Rewards, Countdown) {
  const auto reward = reward_of("{name: countdown}");
  const Problem problem = problem_of("(3 - 1) * 6", {{"numbers", {1, 3, 6, 6}}, {"target", 18}});
  const auto of = [&](Reward& judge, const std::string& text) { return score(judge, problem, text); };
  EXPECT_EQ(of(*reward, "<answer>(3 + 1) * 6 - 6</answer>"), 1);
  EXPECT_EQ(of(*reward, "<think>(1)</think><answer>6 + 6 + (3 + 1) + 2</answer>"), 0);
  EXPECT_EQ(of(*reward, "\\boxed{(3+1) \\times 6 - 6 = 18}"), 1);
  EXPECT_EQ(of(*reward, "Let me see.\n(3 + 1) * 6 - 6 = 18."), 1);
  EXPECT_EQ(of(*reward, "<answer>(3 + 1) * 6 - 6 = 19</answer>"), 0);
  EXPECT_EQ(of(*reward, "<answer>(3 + 1) * 6 - 6 = 9 + 9</answer>"), 0) << "a claim is one number";
  EXPECT_EQ(of(*reward, "<answer>(3 - 1) * 6 + 6</answer>"), 1);
  EXPECT_EQ(of(*reward, "<answer>3 * 6</answer>"), 0) << "two numbers are missing";
  EXPECT_EQ(of(*reward, "<answer>18</answer>"), 0);
  EXPECT_EQ(of(*reward, "<answer>6 + 6 + 6 * 1 + 3 - 3</answer>"), 0);
  EXPECT_EQ(of(*reward, "<answer>36 / 2 * (1 + 0)</answer>"), 0);
  EXPECT_EQ(of(*reward, "<answer>system('rm')</answer>"), 0);
  EXPECT_EQ(of(*reward, "<answer>6 / (3 - 3) + 1 + 6</answer>"), 0);
  EXPECT_EQ(of(*reward, ""), 0);
  const auto some = reward_of("{name: countdown, use_all: false, partial: 0.1}");
  EXPECT_EQ(of(*some, "<answer>3 * 6</answer>"), 1);
  EXPECT_EQ(of(*some, "<answer>3 + 6</answer>"), 0.1);
  EXPECT_EQ(of(*some, "<answer>3 * 3 + 9</answer>"), 0);
  EXPECT_EQ(of(*some, "<answer>6 / (6 - 6)</answer>"), 0);
  EXPECT_EQ(of(*some, "<answer>1 / (6 - 6)</answer>"), 0.1) << "the right numbers without a value";
  expect_error([&] { score(*reward, "18", "1"); }, {"reward countdown", "p1", "numbers"});
}

TEST(Rewards, SumsAreWeightedAsTrlDoes) {
  const double none = std::nan("");
  EXPECT_DOUBLE_EQ(weighted_sum(std::vector{1.0, 0.5}, std::vector{1.0, 2.0}), 2);
  EXPECT_DOUBLE_EQ(weighted_sum(std::vector{1.0, none}, std::vector{1.0, 2.0}), 1) << "no verdict counts as nothing";
  EXPECT_TRUE(std::isnan(weighted_sum(std::vector{none, none}, std::vector{1.0, 2.0}))) << "unscorable";
  RewardSet set(reward_options("[{name: number}, {name: think_format_reward}]"), {1.0, 0.25}, {});
  const Problem known = problem_of("18"), unknown = problem_of("?");
  std::vector<Sample> samples(3);
  samples[0].problem = samples[1].problem = &known;
  samples[2].problem = &unknown;
  samples[0].completion = "<think>a</think>18";
  samples[1].completion = "18";
  samples[2].completion = "<think>a</think>18";
  const auto judged = set.judge(samples);
  EXPECT_EQ(judged.totals, (std::vector{1.25, 1.0, 0.25}));
  EXPECT_TRUE(std::isnan(judged.verdicts[0][2].reward));
  EXPECT_EQ(set.answer(samples[0]), "18");
  expect_error(
      [] {
        RewardSet(reward_options("[{name: number}]"), {1.0, 2.0}, {});
      },
      {"reward_weights", "2 weights for 1"});
  expect_error([] { RewardSet(reward_options("[{name: number}]"), {INFINITY}, {}); }, {"reward_weights", "inf"});
}

TEST(Rewards, SettingsAreStrict) {
  const auto bad = [](const std::string& yaml, const std::vector<std::string>& parts) {
    expect_error([&] { reward_options(yaml); }, parts);
  };
  bad("[]", {"rewards", "found no reward"});
  bad("- {name: nummer}", {"run.yaml:1: rewards.0.name", "'nummer'", "did you mean 'number'"});
  bad("- {from: [boxed]}", {"rewards.0.name", "found nothing"});
  bad("- {name: number}\n- {name: format}\n", {"run.yaml:2: rewards.1.pattern", "found nothing"});
  bad("- name: number\n  pattern: x\n",
      {"run.yaml:2: rewards.0.pattern", "the reward 'number', which does not read it"});
  bad("- {name: number, from: [phrase]}", {"rewards.0.from", "'phrase'", "boxed"});
  bad("- {name: number, form: [boxed]}", {"rewards.0.form", "unknown key", "'from'"});
  bad("- {name: accuracy_reward}", {"'accuracy_reward'", "number compares exact values"});
  bad("- {name: get_soft_overlong_punishment}", {"soft_overlong_punishment_reward"});
  bad("- {name: choice, letters: abc}", {"rewards.0.letters", "capital"});
  bad("- {name: program}", {"rewards.0.program", "/bin/sh"});
  bad("- {name: program, program: a, argv: [b]}", {"rewards.0.program", "one or the other"});
  bad("- {program: a, timeout: 0}", {"rewards.0.timeout", "above 0"});
  bad("- {program: a, folder: nowhere}", {"rewards.0.folder", "'nowhere'"});
  bad("- {name: repetition_penalty_reward, max_penalty: 1}", {"max_penalty", "at most 0"});
  bad("- {name: number, label: a}\n- {name: choice, label: a}", {"run.yaml:2: rewards.1.label", "'a'"});
  bad("number", {"rewards", "'number'", "expected a list"});
  const auto options = reward_options("[{name: number}, {name: number, after_think: false}, {program: judge}]");
  EXPECT_EQ(options[1].label, "number-2");
  EXPECT_EQ(options[2].name, "program");
  EXPECT_EQ(reward_options(config::to_json(options).dump()), options);
  EXPECT_EQ(reward_options("{name: number}").size(), 1) << "one reward may stand for itself";
}

}  // namespace
}  // namespace cairn::rl
