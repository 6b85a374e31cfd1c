// labels: quick
// Problems: random access, sides that never share a problem, levels; data sets through templates, and what is wrong
// with them; the settings `task:`.
#include <set>

#include "tests/trainer/task_fixture.h"
#include "trainer/data/template.h"
#include "trainer/rl/rewards/expression.h"

namespace cairn::rl {
namespace {

const std::vector<std::string> kGenerated = {"arithmetic", "countdown", "sorting", "recall"};

TEST(Tasks, AProblemIsAFunctionOfSeedSideAndIndex) {
  for (const auto& name : kGenerated) {
    const auto one = task_of("{name: " + name + ", levels: [2, 3]}"),
               two = task_of("{name: " + name + ", levels: [2, 3]}");
    std::vector<std::string> forward, backward;
    for (int i = 0; i < 40; ++i) forward.push_back(one->problem(Side::train, 7, i).prompt);
    for (int i = 39; i >= 0; --i) backward.insert(backward.begin(), two->problem(Side::train, 7, i).prompt);
    EXPECT_EQ(forward, backward) << name;
    int same = 0;
    for (int i = 0; i < 40; ++i) same += one->problem(Side::train, 8, i).prompt == forward[i];
    EXPECT_LT(same, 10) << name << ": another seed gives other problems";
    EXPECT_GT(std::set(forward.begin(), forward.end()).size(), 20) << name;
  }
}

// Small spaces of problems, where every problem of one side is met many times: no seed or level brings it to the other.
TEST(Tasks, TrainingAndEvaluationShareNoProblem) {
  for (const auto& name : kGenerated) {
    std::set<std::string> train, evaluation;
    for (const char* levels : {"[1]", "[1, 2]"}) {
      const auto task = task_of("{name: " + name + ", held_out: 0.3, levels: " + levels + "}");
      for (uint64_t seed = 0; seed < 3; ++seed)
        for (int i = 0; i < 300; ++i) {
          train.insert(task->problem(Side::train, seed, i).id);
          evaluation.insert(task->problem(Side::evaluation, seed, i).id);
        }
    }
    for (const auto& id : evaluation) ASSERT_FALSE(train.contains(id)) << name;
    EXPECT_GT(evaluation.size(), 20) << name;
  }
}

TEST(Tasks, TheShareHeldOutIsKeptAndCanBeNothing) {
  int held = 0;
  for (int i = 0; i < 20000; ++i) held += side_of(content_hash(std::to_string(i)), 0.2) == Side::evaluation;
  EXPECT_NEAR(held / 20000.0, 0.2, 0.01);
  const auto all = task_of("{name: arithmetic, held_out: 0}");
  EXPECT_NO_THROW(all->problem(Side::train, 1, 0));
  expect_error([&] { all->problem(Side::evaluation, 1, 0); }, {"task arithmetic", "evaluation", "held_out: 0"});
}

TEST(Tasks, ArithmeticIsRight) {
  for (int level = 1; level <= 8; ++level) {
    const auto task = task_of("{name: arithmetic, levels: [" + std::to_string(level) + "]}");
    for (int i = 0; i < 100; ++i) {
      const auto problem = task->problem(Side::train, 3, i);
      EXPECT_EQ(problem.level, level);
      const auto expression = parse_expression(problem.fields["expression"].get<std::string>());
      ASSERT_TRUE(expression && expression->value) << problem.prompt;
      EXPECT_EQ(expression->value->text(), problem.reference) << problem.prompt;
      EXPECT_NE(problem.prompt.find(problem.fields["expression"].get<std::string>()), std::string::npos);
    }
  }
  const auto wide = task_of("{name: arithmetic, digits: 9, operands: 3, operators: \"-\"}")->problem(Side::train, 1, 0);
  EXPECT_GT(wide.fields["expression"].get<std::string>().size(), 15);
  expect_error([] { task_of("{name: arithmetic, digits: 9, operands: 3, operators: \"*\"}"); }, {"27 digits", "18"});
}

TEST(Tasks, CountdownCanBeSolved) {
  const auto reward = reward_of("{name: countdown}");
  for (int level = 1; level <= 8; ++level) {
    const auto task = task_of("{name: countdown, levels: [" + std::to_string(level) + "]}");
    for (int i = 0; i < 100; ++i) {
      const auto problem = task->problem(Side::train, 3, i);
      EXPECT_EQ(score(*reward, problem, "<answer>" + problem.reference + "</answer>"), 1) << problem.reference;
      EXPECT_EQ(score(*reward, problem, "<answer>" + problem.reference + " + 1</answer>"), 0);
      EXPECT_GT(problem.fields["target"].get<int64_t>(), 0);
    }
  }
}

TEST(Tasks, SortingAndRecallAreRight) {
  const auto match = reward_of("{name: exact_match, normalize: [space, punctuation]}");
  for (int level = 1; level <= 8; ++level) {
    const auto sorting = task_of("{name: sorting, levels: [" + std::to_string(level) + "]}");
    const auto problem = sorting->problem(Side::train, 3, level);
    auto numbers = problem.fields["numbers"].get<std::vector<int64_t>>();
    std::sort(numbers.begin(), numbers.end());
    std::string answer;
    for (const auto n : numbers) answer += std::to_string(n) + ", ";
    EXPECT_EQ(score(*match, problem, "Sorted:\n#### " + answer), 1);

    const auto recall = task_of("{name: recall, levels: [" + std::to_string(level) + "]}");
    for (int i = 0; i < 10; ++i) {
      const auto asked = recall->problem(Side::train, 3, i);
      const auto text = asked.fields["text"].get<std::string>();
      const auto pair = asked.fields["key"].get<std::string>() + " = " + asked.reference + ".";
      ASSERT_NE(text.find(pair), std::string::npos) << asked.prompt;
      EXPECT_EQ(text.find(asked.fields["key"].get<std::string>() + " ="), text.rfind(pair)) << "one answer";
      const auto behind = text.substr(text.find(pair) + pair.size());
      EXPECT_EQ(std::count(behind.begin(), behind.end(), ' '), asked.fields["distance"].get<int64_t>());
    }
  }
}

TEST(Tasks, ChatsHaveMessages) {
  const auto plain = task_of("{name: arithmetic}")->problem(Side::train, 1, 0);
  EXPECT_TRUE(plain.messages.empty());
  const auto chat = task_of("{name: arithmetic, chat: true, system: Be brief.}")->problem(Side::train, 1, 0);
  EXPECT_EQ(chat.messages, (std::vector<Message>{{"system", "Be brief."}, {"user", plain.prompt}}));
}

TEST(Tasks, DrawsOfADataSetGiveEveryProblemOnceAnEpoch) {
  const Folder folder;
  std::string lines;
  for (int i = 0; i < 50; ++i)
    lines += "{\"q\": \"problem " + std::to_string(i) + "\", \"a\": " + std::to_string(i) + "}\n";
  const auto task = task_of("{name: data, file: " + folder.write("d.jsonl", lines) +
                            ", prompt: \"{q}\", answer: \"{a}\", held_out: 0.2}");
  const int64_t n = *task->size(Side::train);
  EXPECT_EQ(n + *task->size(Side::evaluation), 50);
  EXPECT_GT(*task->size(Side::evaluation), 2);
  std::vector<int64_t> first, second;
  for (int64_t draw = 0; draw < n; ++draw) first.push_back(drawn_index(*task, Side::train, 5, draw));
  for (int64_t draw = n; draw < 2 * n; ++draw) second.push_back(drawn_index(*task, Side::train, 5, draw));
  EXPECT_NE(first, second);
  EXPECT_EQ(std::set(first.begin(), first.end()).size(), n);
  EXPECT_EQ(std::set(second.begin(), second.end()).size(), n);
  EXPECT_EQ(drawn_index(*task_of("{name: arithmetic}"), Side::train, 5, 123), 123);
  EXPECT_THROW(task->problem(Side::train, 1, n), std::out_of_range);
}

TEST(Tasks, DataInAnyWrapping) {
  const Folder folder;
  const std::string lines = "{\"q\": \"a\", \"a\": \"1\"}\n\n{\"q\": \"b\", \"a\": \"2\"}\n";
  const std::string array = "\n[\n  {\"q\": \"a\", \"a\": \"1\"},\n  {\"q\": \"b\",\n \"a\": \"2\"}\n]\n";
  const auto problems = [&](const std::string& path) {
    const auto task = task_of("{name: data, file: \"" + path + "\", prompt: \"{q}\", answer: \"{a}\", held_out: 0}");
    std::vector<std::string> out;
    for (int64_t i = 0; i < *task->size(Side::train); ++i) {
      const auto problem = task->problem(Side::train, 0, i);
      out.push_back(problem.prompt + "=" + problem.reference + "@" +
                    problem.source.substr(problem.source.rfind(' ') + 1));
    }
    return out;
  };
  EXPECT_EQ(problems(folder.write("a.jsonl", lines)), (std::vector<std::string>{"a=1@1", "b=2@3"}));
  EXPECT_EQ(problems(folder.write("a.json", array)), (std::vector<std::string>{"a=1@3", "b=2@4"}));
  EXPECT_EQ(problems(folder.write("b.jsonl.gz", data::gzip(lines))), (std::vector<std::string>{"a=1@1", "b=2@3"}));
  EXPECT_EQ(problems(folder.write("b.json.zst", data::zstd("\xEF\xBB\xBF" + array))),
            (std::vector<std::string>{"a=1@3", "b=2@4"}));
  EXPECT_EQ(problems(folder / "b.*"), (std::vector<std::string>{"a=1@3", "b=2@4", "a=1@1", "b=2@3"}));
}

TEST(Tasks, EvaluationFilesTakeTheirProblemsOutOfTraining) {
  const Folder folder;
  const auto train =
      folder.write("train.jsonl", "{\"q\": \"a\", \"a\": 1}\n{\"q\": \"b\", \"a\": 2}\n{\"q\": \"c\", \"a\": 3}\n");
  const auto test = folder.write("test.jsonl", "{\"q\": \"b\", \"a\": 2}\n{\"q\": \"d\", \"a\": 4}\n");
  const auto task =
      task_of("{name: data, file: " + train + ", evaluation: " + test + ", prompt: \"{q}\", answer: \"{a}\"}");
  EXPECT_EQ(task->size(Side::train), 2);
  EXPECT_EQ(task->size(Side::evaluation), 2);
  EXPECT_EQ(task->problem(Side::train, 0, 1).prompt, "c");
  EXPECT_EQ(task->problem(Side::evaluation, 0, 0).prompt, "b");
  folder.write("train.jsonl", "{\"q\": \"a\", \"a\": 1}\n{\"q\": \"b\", \"a\": 2}\n{\"q\": \"c\", \"a\": 4}\n");
  EXPECT_NE(task_of("{name: data, file: " + train + ", evaluation: " + test + ", prompt: \"{q}\", answer: \"{a}\"}")
                ->digest(),
            task->digest())
      << "a changed answer changes the digest";
}

TEST(Tasks, WhatIsWrongWithADataSetIsSaidWithItsLine) {
  const Folder folder;
  const auto with = [&](const std::string& text, const std::string& more = "") {
    return "{name: data, file: " + folder.write("d.jsonl", text) + ", prompt: \"{q}\", answer: \"{a}\"" + more + "}";
  };
  const auto bad = [&](const std::string& text, const std::vector<std::string>& parts, const std::string& more = "") {
    const std::string yaml = with(text, more);
    expect_error([&] { task_of(yaml); }, parts);
  };
  const std::string good = "{\"q\": \"a\", \"a\": \"1\"}\n";
  bad(good + "{\"question\": \"b\", \"a\": \"2\"}\n",
      {"d.jsonl: line 2", "no field 'q'", "task.prompt", "question, a"});
  bad(good + "{\"q\": \"b\"}\n", {"line 2", "no field 'a'", "task.answer"});
  bad(good + "{\"q\": null, \"a\": 1}\n", {"line 2", "'q' is null"});
  bad(good + "{\"q\": [1], \"a\": 1}\n", {"line 2", "expected messages"});
  bad(good + good + "{\"q\": \"b\", \n", {"d.jsonl: line 3", "not JSON", "byte 12"});
  bad(good + "17\n", {"line 2", "expected a JSON object", "number"});
  bad(good + "{\"q\": \"\xff\", \"a\": 1}\n", {"line 2", "invalid UTF-8"});
  bad("", {"d.jsonl", "the file is empty"});
  bad("\n \n", {"d.jsonl", "found no record"});
  bad("[]", {"d.jsonl", "found no record"});
  bad("[{\"q\": \"a\", \"a\": 1},\n{\"q\": \"b\" \"a\": 1}]", {"line 2", "not JSON"});
  bad("\n[{\"q\": \"a\", \"a\": 1},\n", {"line 2", "not closed"});
  bad("[{\"q\": \"a\", \"a\": 1}]\n{}", {"line 2", "behind the end of the array"});
  bad("[{\"q\": \"a\", \"a\": 1},\n]", {"line 2", "nothing where an entry"});
  bad(good, {"line 1", "the answer '1' has nothing by `extract: hashes`"}, ", extract: hashes");
  bad(good, {"line 1", "task.fields.x", "no field 'y'"}, ", fields: {x: y}");
  bad(good, {"task.pattern", "has no group"}, ", extract: pattern, pattern: abc");
  bad(good, {"`a(b`", "not understood"}, ", extract: pattern, pattern: \"a(b\"");
  expect_error(
      [&] { task_of("{name: data, file: " + folder.write("d.jsonl", good) + ", prompt: \"{q|upper}\", answer: x}"); },
      {"task.prompt", "the filter 'upper'", "letters"});
}

TEST(Tasks, TemplatesFillInAndLeaveOtherBracesAlone) {
  const Json record =
      Json::parse(R"({"q": "two", "n": 51.0, "i": 3, "o": ["x", "y"], "t": {"k": true}, "a.b": "dot"})");
  const auto render = [&](const std::string& text) { return data::Template(text, "task.prompt").render(record); };
  EXPECT_EQ(render("{q} {n} {i} {t.k} {o.1} {a.b}"), "two 51.0 3 true y dot");
  EXPECT_EQ(render("{o|letters}\n{o|lines} {i|letter} {o|json}"), "A. x\nB. y\nx\ny D [\"x\",\"y\"]");
  EXPECT_EQ(render("\\boxed{} {{q}} { q } {1} \\frac{{1}}{2} {"), "\\boxed{} {q} { q } {1} \\frac{{1}}{2} {");
  expect_error([&] { render("{o}"); }, {"'o' is a list", "{o|lines}"});
  expect_error([&] { render("{o.2}"); }, {"no field 'o.2'"});
}

TEST(Tasks, PromptsMayBeMessages) {
  const Folder folder;
  const auto path = folder.write(
      "d.jsonl",
      R"({"prompt": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "?"}, {"role": "user", "content": "2+2"}], "a": 4})");
  const auto problem = task_of("{name: data, file: " + path + ", prompt: \"{prompt}\", answer: \"{a}\", held_out: 0}")
                           ->problem(Side::train, 0, 0);
  ASSERT_EQ(problem.messages.size(), 3);
  EXPECT_EQ(problem.messages[2], (Message{"user", "2+2"}));
  EXPECT_EQ(problem.reference, "4");
}

TEST(Tasks, SettingsAreStrict) {
  const auto bad = [](const std::string& yaml, const std::vector<std::string>& parts) {
    expect_error([&] { task_options(yaml); }, parts);
  };
  bad("{levels: [1]}", {"run.yaml:1: task.name", "found nothing"});
  bad("{name: arithmatic}", {"task.name", "'arithmatic'", "did you mean 'arithmetic'"});
  bad("name: arithmetic\nlevls: [1]\n", {"run.yaml:2", "task.levls", "unknown key", "'levels'"});
  bad("name: arithmetic\npairs: 4\n", {"run.yaml:2: task.pairs", "the task 'arithmetic', which does not read it"});
  bad("{name: arithmetic, levels: [9]}", {"task.levels.0", "at most 8"});
  bad("{name: arithmetic, levels: []}", {"task.levels", "empty"});
  bad("{name: arithmetic, operators: \"+/\"}", {"task.operators", "+, - and *"});
  bad("{name: arithmetic, system: x}", {"task.system", "chat"});
  bad("{name: arithmetic, held_out: 0.0001}", {"task.held_out"});
  bad("{name: data, prompt: \"{q}\", answer: \"{a}\"}", {"task.file", "found nothing"});
  bad("{name: data, file: none.jsonl, prompt: \"{q}\", answer: \"{a}\"}", {"task.file", "'none.jsonl'", "neither"});
  bad("{name: data, file: /x, prompt: \"{q}\", answer: \"{a}\", fields: {a: 1}}", {"task.fields.a", "found 1"});
  bad("{name: data, file: /x, prompt: \"{q}\", answer: \"{a}\", pattern: x}", {"task.pattern", "extract: pattern"});
  // What run.yaml says is read back as it was.
  const auto options = task_options("{name: countdown, levels: [1, 3], largest: 9, held_out: 0.25}");
  EXPECT_EQ(task_options(config::to_json(options).dump()), options);
}

TEST(Tasks, ReadyConfigurationsReadTheRealDataSets) {
  CAIRN_NEEDS_DATA();
  using data::test_data;
  const auto ready = [](const std::string& name, const std::string& file, const std::string& evaluation) {
    auto tree = config::read_yaml(std::string(CAIRN_SOURCE_DIR) + "/configs/rl/tasks/" + name + ".yaml");
    config::apply_override(tree, "task.file=" + test_data(file));
    if (!evaluation.empty()) config::apply_override(tree, "task.evaluation=" + test_data(evaluation));
    config::read_rewards(tree.find("rewards")->value);
    return make_task(config::read_task(tree.find("task")->value));
  };
  const auto gsm8k = ready("gsm8k", "gsm8k/train.jsonl", "gsm8k/test.jsonl");
  EXPECT_EQ(gsm8k->size(Side::train), 7473);
  EXPECT_EQ(gsm8k->size(Side::evaluation), 1319);
  EXPECT_EQ(gsm8k->problem(Side::evaluation, 0, 0).reference, "18");
  const auto svamp = ready("svamp", "svamp/SVAMP.json", "");
  EXPECT_EQ(*svamp->size(Side::train) + *svamp->size(Side::evaluation), 1000);
  EXPECT_NEAR(static_cast<double>(*svamp->size(Side::evaluation)), 100, 40);
  const auto logiqa = ready("logiqa", "logiqa/v2_dev.jsonl", "logiqa/v2_test.jsonl");
  EXPECT_EQ(logiqa->size(Side::evaluation), 1572);
  EXPECT_LE(*logiqa->size(Side::train), 1569);
  const auto problem = logiqa->problem(Side::train, 0, 0);
  EXPECT_NE(problem.prompt.find("\nD. "), std::string::npos) << problem.prompt;
  std::set<std::string> asked;
  for (int64_t i = 0; i < *logiqa->size(Side::evaluation); ++i)
    asked.insert(logiqa->problem(Side::evaluation, 0, i).prompt);
  for (int64_t i = 0; i < *logiqa->size(Side::train); ++i)
    ASSERT_FALSE(asked.contains(logiqa->problem(Side::train, 0, i).prompt));
}

}  // namespace
}  // namespace cairn::rl
