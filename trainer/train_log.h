// What a run says while it goes on: console, TensorBoard, samples.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>

#include "trainer/console.h"
#include "trainer/metrics/tensorboard.h"
#include "trainer/stepper.h"

namespace cairn {

class TrainLog {
 public:
  TrainLog(Console& console, Stepper& stepper) : console_(console), stepper_(stepper) {}

  // TensorBoard's event files; `resume_at`: the first step of a run that goes on, else -1.
  void open_board(const std::filesystem::path& folder, int64_t resume_at) { board_.emplace(folder, resume_at); }
  // The machine's ceiling over all ranks in GFLOP/s; measured again where the run is faster: others were at work then.
  void set_peak(std::function<double()> measure) { measure_ = std::move(measure), peak_ = measure_(); }

  // Where the run begins, or goes on.
  void start(const std::filesystem::path& run, int ranks, bool resuming);
  // The curves of a journal line.
  void curves(const nlohmann::ordered_json& line);
  // Text that the model as it is now goes on with: to the console, TensorBoard and RUN/samples.jsonl, a line
  // {"step", "prompt", "text"} each. A step that is made again adds a line, and the later one holds.
  void sample(const config::SampleOptions& options);
  // The line on the console. `elapsed`: seconds that the run has taken.
  void step(const Advance& made, double step_seconds, double elapsed, int64_t log_every, bool at_end);
  void flush();

 private:
  Console& console_;
  Stepper& stepper_;
  std::optional<TensorBoardWriter> board_;
  std::filesystem::path samples_;  // RUN/samples.jsonl
  double rate_ = 0, peak_ = 1;
  std::function<double()> measure_;
};

}  // namespace cairn
