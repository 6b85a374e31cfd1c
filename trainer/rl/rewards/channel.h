// Questions to a program, one JSON object a line on its standard input, and its answers, one a line on its standard
// output. Rewards and environments speak through it; what the messages mean is theirs.
//
// Each question has an `id`, a whole number that the channel sets and that no two questions of a run share; the answer
// repeats it. Answers may come in any order, and before all questions are read: both pipes are served at once. The
// program lives as long as the channel. Its standard error is not a part of the protocol; errors quote its end.
#pragma once

#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "trainer/rl/rewards/process.h"

namespace cairn::rl {

using Json = nlohmann::ordered_json;

// Names the program, what it did and which question it was about.
struct ProgramError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct ChannelOptions {
  Command command;
  std::string what = "reward program";  // how errors call it
  double timeout = 60;                  // seconds for a batch
  int restarts = 3;                     // in all
};

class Channel {
 public:
  explicit Channel(ChannelOptions options);
  ~Channel();

  // What is wrong with an answer, "" where nothing is.
  using Check = std::function<std::string(const Json& answer)>;
  // The answers to `questions`, in their order. `names`: how errors call each question. The program is started where it
  // does not run. Where it ends, hangs longer than the timeout, closes a stream, answers what was not asked, twice, or
  // what is no JSON or fails `check`, it is killed with all its children, started again and asked once more, as long as
  // there are restarts; then ProgramError says what went wrong.
  std::vector<Json> ask(std::vector<Json> questions, std::span<const std::string> names, const Check& check);

  int restarted() const { return restarted_; }

 private:
  struct Batch;
  std::vector<Json> exchange(Batch& batch);
  void start();
  void stop();
  bool read_out(Batch& batch);
  void take_line(Batch& batch, std::string line);
  void read_err();
  [[noreturn]] void fail(const Batch& batch, const std::string& what);

  ChannelOptions options_;
  std::unique_ptr<Process> process_;
  int64_t next_id_ = 1;
  int restarted_ = 0;
  std::string pending_;   // what was read of a line that is not whole yet
  std::string err_tail_;  // the end of the standard error
};

}  // namespace cairn::rl
