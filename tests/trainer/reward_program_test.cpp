// labels: quick
// Programs as rewards and environments, well-behaved and not: every way to break the protocol ends in time, in an error
// that names the program and the question, and leaves no process behind.
#include <dirent.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <thread>

#include "tests/trainer/task_fixture.h"
#include "trainer/rl/rewards/environment.h"
#include "trainer/rl/rewards/program.h"

namespace cairn::rl {
namespace {

class RewardProgram : public testing::Test {
 protected:
  static void SetUpTestSuite() { std::signal(SIGPIPE, SIG_IGN); }  // as the trainer does at its start

  void SetUp() override { before_ = open_files(); }
  void TearDown() override { EXPECT_EQ(open_files(), before_) << "files left open"; }

  static size_t open_files() {
    size_t count = 0;
    DIR* folder = ::opendir("/proc/self/fd");
    while (::readdir(folder)) ++count;
    ::closedir(folder);
    return count;
  }

  // A program of Python: `answer(q)` and `say(object)` are there, `body` is what it does.
  std::string python(const std::string& body, const std::string& name = "judge.py") const {
    folder_.write(name,
                  "import json, os, sys, time, signal, subprocess\n"
                  "def say(o):\n    sys.stdout.write(json.dumps(o) + '\\n'); sys.stdout.flush()\n"
                  "def questions():\n    for line in iter(sys.stdin.readline, ''):\n        yield json.loads(line)\n" +
                      body);
    return "exec python3 " + (folder_ / name);
  }
  config::RewardOptions options(const std::string& program, double timeout = 20) const {
    config::RewardOptions o;
    o.name = o.label = "program";
    o.program = program;
    o.timeout = timeout;
    o.restarts = 0;
    return o;
  }

  // Completions "0", "1", ... of one problem.
  std::vector<Verdict> judge(ProgramReward& reward, int count, const std::string& filler = "") const {
    std::vector<std::string> texts;
    for (int i = 0; i < count; ++i) texts.push_back(std::to_string(i) + filler);
    std::vector<Sample> samples(static_cast<size_t>(count));
    for (int i = 0; i < count; ++i) {
      samples[i].problem = &problem_;
      samples[i].completion = texts[i];
      samples[i].ids = ids_;
    }
    return reward.judge(samples);
  }
  static std::vector<double> rewards_of(const std::vector<Verdict>& verdicts) {
    std::vector<double> out;
    for (const auto& verdict : verdicts) out.push_back(verdict.reward);
    return out;
  }
  // The error of three questions to a program, which has to come within `seconds`.
  std::string error_of(const config::RewardOptions& o, double seconds = 15, const std::string& filler = "") const {
    const auto start = std::chrono::steady_clock::now();
    std::string message = "no error";
    try {
      ProgramReward reward(o);
      judge(reward, 3, filler);
    } catch (const ProgramError& error) {
      message = error.what();
    }
    EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), seconds);
    return message;
  }
  void expect_parts(const std::string& message, const std::vector<std::string>& parts) const {
    for (const auto& part : parts)
      EXPECT_NE(message.find(part), std::string::npos) << part << " is not in: " << message;
  }
  static bool alive(pid_t id) { return ::kill(id, 0) == 0; }
  // Ended, though nobody may have collected it yet.
  static bool gone(pid_t id) {
    for (int i = 0; i < 200; ++i) {
      std::ifstream stat("/proc/" + std::to_string(id) + "/stat");
      const std::string text((std::istreambuf_iterator<char>(stat)), {});
      if (text.empty() || text.substr(text.rfind(')') + 2, 1) == "Z") return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }

  Folder folder_;
  Problem problem_ = problem_of("18", {{"numbers", {1, 2}}});
  std::vector<int32_t> ids_ = {5, 6, 7};
  size_t before_ = 0;
};

TEST_F(RewardProgram, JudgesBatchesAndLives) {
  ProgramReward reward(options(python(R"(
n = 0
for q in questions():
    n += 1
    assert q['prompt'] == '2 + 2?' and q['reference'] == '18' and q['fields'] == {'numbers': [1, 2]}, q
    assert q['tokens'] == 3 and q['truncated'] is False and q['problem'] == 'p1', q
    r = float(q['completion'])
    say({'id': q['id'], 'reward': None if r == 2 else r / 2, 'extra': {'pid': os.getpid(), 'n': n}})
)")));
  const auto first = judge(reward, 4), second = judge(reward, 2);
  EXPECT_EQ(first[3].reward, 1.5);
  EXPECT_TRUE(std::isnan(first[2].reward));
  EXPECT_EQ(first[0].extra["pid"], second[0].extra["pid"]) << "one process for all batches";
  EXPECT_EQ(second[1].extra["n"], 6);
  EXPECT_TRUE(judge(reward, 0).empty());
}

TEST_F(RewardProgram, AnswersInAnyOrderAndAnyPieces) {
  ProgramReward reward(options(python(R"(
batch = []
for q in questions():
    batch.append(q)
    if len(batch) == 5:
        out = ''.join(json.dumps({'id': b['id'], 'reward': float(b['completion'])}) + '\r\n\n' for b in reversed(batch))
        for c in out:
            sys.stdout.write(c); sys.stdout.flush()
        batch = []
)")));
  EXPECT_EQ(rewards_of(judge(reward, 5)), (std::vector<double>{0, 1, 2, 3, 4}));
  EXPECT_EQ(rewards_of(judge(reward, 5)), (std::vector<double>{0, 1, 2, 3, 4}));
}

TEST_F(RewardProgram, ALastLineNeedsNoEndAndOutputIsReadAfterTheEnd) {
  auto o = options(python(R"(
qs = [next(questions()) for _ in range(3)]
sys.stdout.write('\n'.join(json.dumps({'id': q['id'], 'reward': 1}) for q in qs))
)"));
  ProgramReward reward(o);
  EXPECT_EQ(rewards_of(judge(reward, 3)), (std::vector<double>{1, 1, 1}));
}

TEST_F(RewardProgram, ShellLinesWordsFoldersAndSignals) {
  python(R"(
for q in questions():
    say({'id': q['id'], 'reward': 1, 'extra': [os.getcwd(), sys.argv[1:]]})
)");
  auto o = options("");
  o.argv = {"python3", "judge.py", "a b", "$HOME"};
  o.folder = folder_.path();
  ProgramReward words(o);
  EXPECT_EQ(judge(words, 1)[0].extra, (Json{std::filesystem::canonical(folder_.path()).string(), {"a b", "$HOME"}}));
  auto line = options("cat judge.py > /dev/null && python3 judge.py \"a b\" | cat");
  line.folder = folder_.path();
  ProgramReward shell(line);
  EXPECT_EQ(judge(shell, 1)[0].extra[1], Json{"a b"});
  // SIGPIPE is ignored here; a program gets the usual one: `yes | head` ends.
  ProgramReward pipe(
      options("yes | head -n 1 > /dev/null; while read -r q; do id=${q#*'\"id\":'}; echo '{\"id\":'${id%%,*}', "
              "\"reward\": 2}'; done"));
  EXPECT_EQ(rewards_of(judge(pipe, 3)), (std::vector<double>{2, 2, 2}));
}

// Both pipes fill up unless both are served: 30 MB of questions, answers of megabytes before the next one is read, and
// megabytes of complaints first.
TEST_F(RewardProgram, MegabytesInAllDirectionsDoNotLock) {
  ProgramReward reward(options(python(R"(
sys.stderr.write('x' * 3000000)
big = 'y' * 4000000
for q in questions():
    say({'id': q['id'], 'reward': len(q['completion']), 'extra': big})
)"),
                               60));
  const auto verdicts = judge(reward, 6, std::string(5000000, 'z'));
  EXPECT_EQ(verdicts[5].reward, 5000001);
  EXPECT_EQ(verdicts[5].extra.get<std::string>().size(), 4000000);
}

TEST_F(RewardProgram, TextThatIsNoUtf8IsAskedAbout) {
  ProgramReward reward(options(python("for q in questions(): say({'id': q['id'], 'reward': len(q['completion'])})\n")));
  EXPECT_EQ(judge(reward, 1, "\xff\n\"")[0].reward, 4);
}

TEST_F(RewardProgram, AProgramThatHangsIsKilled) {
  expect_parts(
      error_of(
          options(python("next(questions())\nprint('warming', file=sys.stderr, flush=True)\ntime.sleep(100)\n"), 1), 6),
      {"reward program `exec python3", "judge.py`", "took longer than 1 s", "3 of 3 questions without an answer",
       "id 1 (p1), id 2 (p1), id 3 (p1)", "its standard error ends with:\nwarming", "no restarts are left"});
  expect_parts(error_of(options("sleep 100", 0.5), 5), {"`sleep 100`", "took longer than 0.5 s"});
  // Reads nothing while the questions do not fit into the pipe.
  expect_parts(error_of(options("sleep 100", 1), 6, std::string(1000000, 'x')), {"took longer than 1 s"});
  // Ignores the polite signals.
  expect_parts(error_of(options(python("for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(s, "
                                       "signal.SIG_IGN)\ntime.sleep(100)\n"),
                                1),
                        6),
               {"took longer than 1 s"});
}

TEST_F(RewardProgram, AProgramThatDiesIsNamedWithItsLastWords) {
  expect_parts(error_of(options(python("next(questions())\nraise ValueError('no such model')\n"))),
               {"ended with exit status 1", "Traceback", "ValueError: no such model"});
  expect_parts(error_of(options("exit 3")), {"`exit 3`", "ended with exit status 3"});
  expect_parts(error_of(options("kill -9 $$")), {"was killed by signal 9 (Killed)"});
  expect_parts(error_of(options("/no/such/program")), {"exit status 127", "/no/such/program"});
  auto missing = options("");
  missing.argv = {"/no/such/program", "x"};
  expect_error([&] { error_of(missing); }, {"/no/such/program x", "cannot be started", "No such file"});
  auto nowhere = options("true");
  nowhere.folder = "/no/such/folder";
  expect_error([&] { error_of(nowhere); }, {"cannot be started in /no/such/folder"});
  // A child holds the pipes open after the program's end.
  expect_parts(error_of(options("sleep 100 & exit 5"), 5), {"ended with exit status 5"});
}

TEST_F(RewardProgram, AProgramThatClosesItsStreamsIsNoticed) {
  expect_parts(error_of(options("exec >&-; sleep 100"), 5), {"closed its standard output"});
  expect_parts(error_of(options("exec <&-; sleep 100"), 5, std::string(1000000, 'x')), {"its standard input closed"});
  // What it has read it may still answer.
  ProgramReward reward(
      options(python("q = next(questions())\nos.close(0)\nsay({'id': q['id'], 'reward': 7})\ntime.sleep(100)\n")));
  EXPECT_EQ(judge(reward, 1)[0].reward, 7);
}

TEST_F(RewardProgram, BrokenAnswersAreQuoted) {
  const auto broken = [&](const std::string& body, const std::vector<std::string>& parts) {
    expect_parts(error_of(options(python("q = next(questions())\n" + body + "\ntime.sleep(100)\n"))), parts);
  };
  broken("print('Loading \\x07model...', flush=True)", {"printed `Loading \\x07model...`", "expected a JSON object"});
  broken("print('w' * 5000, flush=True)", {"printed `" + std::string(200, 'w') + "...`"});
  broken("print('[1]', flush=True)", {"printed `[1]`", "expected a JSON object"});
  broken("say({'reward': 1})", {"expected the `id`"});
  broken("say({'id': '1', 'reward': 1})", {"expected the `id` of a question, a whole number"});
  broken("say({'id': 17, 'reward': 1})", {"id 17, which was not asked"});
  broken("say({'id': 1})", {"for id 1 (p1): it has no `reward`"});
  broken("say({'id': 2, 'reward': 'high'})", {"for id 2 (p1)", "no finite number"});
  broken("say({'id': 1, 'reward': True})", {"no finite number"});
  broken("say({'id': 1, 'reward': float('nan')})",
         {"printed `{\"id\": 1, \"reward\": NaN}`", "expected a JSON object"});
  broken("print('{\"id\": 1, \"reward\": 1e999}', flush=True)", {"1e999"});
  broken("say({'id': 1, 'reward': 1})\nsay({'id': 1, 'reward': 1})",
         {"a second answer to id 1 (p1)", "2 of 3 questions without an answer: id 2 (p1), id 3 (p1)"});
  broken("say({'id': 1, 'reward': 1})\nsys.exit(0)", {"ended with exit status 0", "2 of 3 questions"});
  broken("sys.stdout.buffer.write(b'\\xff\\xfe\\n'); sys.stdout.flush()", {"expected a JSON object"});
}

TEST_F(RewardProgram, AnAnswerTooManyIsFoundByTheNextBatch) {
  ProgramReward reward(options(python(R"(
for q in questions():
    say({'id': q['id'], 'reward': 1})
    if q['completion'] == '1': time.sleep(0.2); say({'id': q['id'], 'reward': 1})
)")));
  EXPECT_EQ(rewards_of(judge(reward, 2)), (std::vector<double>{1, 1}));
  std::this_thread::sleep_for(std::chrono::milliseconds(400));
  expect_error([&] { judge(reward, 1); }, {"an answer to id 2, which was answered before"});
}

TEST_F(RewardProgram, IsStartedAnewAndAskedOnceMore) {
  const auto flaky = python(R"(
path = os.path.join(os.path.dirname(sys.argv[0]), 'starts')
n = int(open(path).read()) + 1 if os.path.exists(path) else 1
open(path, 'w').write(str(n))
for q in questions():
    if n % 2 == 1 and q['completion'] == '1': sys.exit(9)
    say({'id': q['id'], 'reward': n})
)");
  auto o = options(flaky);
  o.restarts = 1;
  ProgramReward reward(o);
  EXPECT_EQ(rewards_of(judge(reward, 3)), (std::vector<double>{2, 2, 2})) << "the whole batch is asked again";
  EXPECT_EQ(rewards_of(judge(reward, 3)), (std::vector<double>{2, 2, 2}));

  auto always = options("exit 4");
  always.restarts = 5;
  expect_parts(error_of(always), {"exit status 4", "the second time"});
  // Restarts are counted over the run: one batch is saved, the next is not.
  auto dies =
      options(python("q = next(questions())\nqs = questions()\nfor q in [q] + [next(qs) for _ in range(2)]: say({'id': "
                     "q['id'], 'reward': 1})\nsys.exit(6)\n"));
  dies.restarts = 1;
  ProgramReward twice(dies);
  judge(twice, 3);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  judge(twice, 3);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  expect_error([&] { judge(twice, 3); }, {"no restarts are left"});
}

TEST_F(RewardProgram, LeavesNoProcessBehind) {
  const std::string body = R"(
child = subprocess.Popen(['sh', '-c', 'trap "" TERM INT HUP; sleep 1000 & wait'])
for q in questions(): say({'id': q['id'], 'reward': 1, 'extra': [os.getpid(), child.pid]})
)";
  pid_t program = 0, child = 0;
  {
    ProgramReward reward(options(python(body)));
    const auto extra = judge(reward, 1)[0].extra;
    program = extra[0];
    child = extra[1];
    EXPECT_TRUE(alive(program) && alive(child));
  }
  EXPECT_TRUE(gone(program));
  EXPECT_TRUE(gone(child)) << "a child of the program survived it";
  // One that does not end when its input does, and one that hangs.
  {
    ProgramReward reward(options(python(body + "time.sleep(1000)\n")));
    const auto extra = judge(reward, 1)[0].extra;
    program = extra[0];
    child = extra[1];
  }
  EXPECT_TRUE(gone(program) && gone(child));
}

TEST_F(RewardProgram, SeveralWorkersShareABatch) {
  auto o = options(
      python("for q in questions(): say({'id': q['id'], 'reward': float(q['completion']), 'extra': os.getpid()})\n"));
  o.workers = 3;
  ProgramReward reward(o);
  const auto verdicts = judge(reward, 7);
  EXPECT_EQ(rewards_of(verdicts), (std::vector<double>{0, 1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(verdicts[0].extra, verdicts[2].extra);
  EXPECT_NE(verdicts[0].extra, verdicts[3].extra);
  EXPECT_NE(verdicts[3].extra, verdicts[6].extra);
  EXPECT_EQ(judge(reward, 1)[0].extra, verdicts[0].extra) << "fewer questions than workers";
  auto broken = options("exit 2");
  broken.workers = 2;
  expect_parts(error_of(broken), {"exit status 2"});
}

TEST_F(RewardProgram, MadeFromSettings) {
  const auto program = python("for q in questions(): say({'id': q['id'], 'reward': 0.25})\n");
  const auto reward = reward_of("{program: '" + program + "', label: mine}");
  EXPECT_EQ(reward->label(), "mine");
  EXPECT_EQ(score(*reward, "18", "x"), 0.25);
}

TEST_F(RewardProgram, EnvironmentsGoOnOrEnd) {
  Environment environment(options(python(R"(
for q in questions():
    assert [m['role'] for m in q['transcript']] == ['assistant', 'environment'] * (q['turn'] - 1) + ['assistant'], q
    assert q['completion'] == q['transcript'][-1]['content'], q
    if q['turn'] < 3: say({'id': q['id'], 'continue': 'turn %d' % q['turn'], 'extra': 1})
    else: say({'id': q['id'], 'reward': 0.5 if q['completion'] == 'good' else None, 'done': True})
)")));
  Turn turn;
  turn.problem = &problem_;
  turn.transcript = {{"assistant", "a"}};
  Turn third = turn;
  third.turn = 3;
  third.transcript = {{"assistant", "a"},
                      {"environment", "turn 1"},
                      {"assistant", "b"},
                      {"environment", "turn 2"},
                      {"assistant", "good"}};
  Turn bad = third;
  bad.transcript.back().content = "bad";
  const auto answers = environment.step(std::vector{turn, third, bad});
  EXPECT_EQ(answers[0].next, "turn 1");
  EXPECT_TRUE(std::isnan(answers[0].reward));
  EXPECT_EQ(answers[0].extra, 1);
  EXPECT_FALSE(answers[1].next);
  EXPECT_EQ(answers[1].reward, 0.5);
  EXPECT_FALSE(answers[2].next);
  EXPECT_TRUE(std::isnan(answers[2].reward));
}

TEST_F(RewardProgram, EnvironmentsThatBreakTheProtocolAreNamed) {
  Turn turn;
  turn.problem = &problem_;
  turn.transcript = {{"assistant", "a"}};
  for (const auto& [answer, part] : std::vector<std::pair<std::string, std::string>>{
           {"{'id': 1}", "neither `continue` (a text) nor `reward`"},
           {"{'id': 1, 'continue': 5}", "`continue` is no text"},
           {"{'id': 1, 'continue': 'x', 'reward': 1}", "both `continue` and `reward`"},
           {"{'id': 1, 'continue': 'x', 'done': True}", "`done` is true beside `continue`"},
           {"{'id': 1, 'reward': 1, 'done': False}", "`done` is false without `continue`"},
           {"{'id': 1, 'reward': 1, 'done': 1}", "`done` is neither"},
           {"{'id': 1, 'reward': 'x'}", "no finite number"}}) {
    Environment environment(options(python("next(questions())\nsay(" + answer + ")\ntime.sleep(100)\n")));
    expect_error([&] { environment.step(std::span(&turn, 1)); }, {"environment program", "p1, turn 1", part});
  }
}

}  // namespace
}  // namespace cairn::rl
