// The steps of a run made again: from the nearest state that is whole, under the settings that were in force at each.
#pragma once

#include <functional>

#include "trainer/replay_record.h"
#include "trainer/stepper.h"

namespace cairn {

class Replayer {
 public:
  struct Damaged {
    int64_t step = 0;
    std::filesystem::path folder;
    std::string fault;
  };

  // `record` outlives it.
  explicit Replayer(const RunRecord& record);

  // Brings the nearest state at or before `step` in: a checkpoint (`cached`: or one of the cache), else the
  // initialisation. Every byte is checked, and the digest against the journal; what is damaged is passed over and
  // listed. Throws where the data are no longer those of the run.
  int64_t begin(int64_t step, bool cached);
  const std::vector<Damaged>& damaged() const { return damaged_; }

  // Whether a state that begin() could use lies between the one at hand and `step`.
  bool nearer(int64_t step, bool cached) const;

  // Makes the next step.
  Advance next(StepObserver* observer = nullptr);

  bool begun() const { return stepper_ != nullptr; }
  int64_t step() { return stepper_->step(); }
  int64_t base() const { return base_; }       // the step that begin() returned
  double elapsed() const { return elapsed_; }  // seconds that the run had taken there
  Stepper& stepper() { return *stepper_; }
  const RunRecord& record() const { return record_; }

 private:
  std::unique_ptr<Stepper> prepared(int64_t step);
  void remember_past(Stepper& stepper, int64_t step);

  const RunRecord& record_;
  std::unique_ptr<parallel::World> world_;
  std::unique_ptr<Stepper> stepper_;
  int64_t until_ = 0;  // the last step of the settings that stepper_ has
  int64_t base_ = 0;
  double elapsed_ = 0;
  std::vector<Damaged> damaged_;
};

struct RebuildTalk {
  std::function<void(const std::string&)> say = {};                              // the cost before it is spent; damage
  std::function<void(int64_t step, int64_t done, int64_t total)> progress = {};  // after each step
  bool cost_told = false;                                                        // that of all that is rebuilt
};

// Throws std::runtime_error where the journal ends before step n. Without a journal nothing is known of that.
void check_reach(const RunRecord& record, int64_t step);

// Brings the replayer to the state of step n, from where it stands or a nearer state, and checks its digest and those
// of all steps on the way against the journal. Returns the seconds that the run had taken there. Throws
// std::runtime_error where a digest differs, the journal has none of step n or a later one, or n is beyond the run.
double rebuild(Replayer& replayer, int64_t step, const RebuildTalk& talk);

// After rebuild(): where the journal has no digest of step n, makes the steps up to the next one that it has and checks
// that, so the replayer may stand behind n. Nothing in the journal speaks of the initialisation but the steps that it
// led to. Throws std::runtime_error where the digest differs.
void confirm(Replayer& replayer, int64_t step);

// "217 steps, about 40 s"
std::string cost(int64_t steps, double seconds);

}  // namespace cairn
