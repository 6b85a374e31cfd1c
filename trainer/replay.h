// `cairn replay`: steps of a run recomputed and held against what the run recorded: digests, losses, checkpoints.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "trainer/replay_compare.h"
#include "trainer/replay_record.h"
#include "trainer/step.h"
#include "trainer/stepper.h"

namespace cairn {

struct ReplayProgress {
  int64_t step = 0, done = 0, total = 0;  // steps, those before `from` included
  double seconds = 0;                     // since the first one
};

struct ReplayOptions {
  int64_t from = 0;           // the steps from + 1 ... to
  std::optional<int64_t> to;  // none: the last of the journal
  // Gives what looks on at every step from `from` on, once the state and the data are there; the caller owns it.
  std::function<StepObserver*(Stepper&)> observer = {};
  std::function<void(const std::string&)> say = {};          // the cost, before it is spent
  std::function<void(const ReplayProgress&)> progress = {};  // after each step
};

// Something that is not as the run recorded it.
struct ReplayFault {
  enum class Kind {
    step,        // the state of this step comes out otherwise
    journal,     // the states before and after agree: this line of the journal is another
    checkpoint,  // the stored state is not the one that the step makes
  };
  int64_t step = 0;
  Kind kind = Kind::step;
  std::string message;             // one sentence
  std::string recorded, replayed;  // digests
  std::optional<TensorDifference> tensor;
  std::string folder;               // the checkpoint that the tensor was compared with
  std::vector<std::string> causes;  // likely ones
};

struct ReplayReport {
  int64_t from = 0, to = 0;  // as asked: the steps from + 1 ... to
  int64_t start = 0;         // the state that it began at
  int64_t replayed = 0;      // of these steps, those that were made: fewer where a difference ended the replay
  int64_t compared = 0;      // digests that were compared
  int64_t checkpoints = 0;   // stored states that were compared
  double seconds = 0;        // of the steps
  std::vector<ReplayFault> faults;

  bool verified() const { return faults.empty(); }
  std::optional<int64_t> first_divergence() const;
};

// Throws std::invalid_argument for steps that the run does not have, std::runtime_error where nothing can be compared:
// no journal, no digests in it, changed data.
ReplayReport replay(const RunRecord& record, const ReplayOptions& options);

// Checks options against the record; returns `to`.
int64_t check_range(const RunRecord& record, const ReplayOptions& options);

// {"replayed", "verified", "first_divergence", ...}
nlohmann::ordered_json to_json(const ReplayReport& report);
nlohmann::ordered_json to_json(const ReplayFault& fault);

}  // namespace cairn
