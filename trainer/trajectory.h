// RUN/trajectory beside the loop: on its schedule the loop copies the weights, a background thread compresses and
// writes them (checkpoints/trajectory). Where writing is slower than training the loop waits: memory holds one copy.
#pragma once

#include <exception>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>

#include "checkpoints/async_writer.h"
#include "checkpoints/schedule.h"
#include "checkpoints/trajectory/writer.h"
#include "trainer/config/run_config.h"
#include "trainer/state.h"

namespace cairn {

// The rules of `trajectory:`; none is ever due where it is off.
checkpoints::Schedule trajectory_schedule(const config::TrajectoryOptions& options);

class TrajectoryHook {
 public:
  // For the first rank (`writes`; on others every call does nothing). Steps after `keep_to` are dropped: a run that
  // goes on after a step recomputes them. Throws config::ConfigError where the settings do not fit the model or what
  // is stored.
  TrajectoryHook(const config::RunConfig& config, const std::filesystem::path& run, State& state, bool writes,
                 int64_t keep_to);
  ~TrajectoryHook();

  // After the journal has the line of state.step. `checkpoint`: the state is about to be stored, so what is in
  // progress is sealed with it.
  void step(State& state, bool checkpoint);
  // Starts the sealing of what is in progress.
  void seal();
  // Waits until all that was asked for is on the disk; throws what went wrong, and does so from then on, so that no
  // checkpoint is committed after steps that were lost. From any thread.
  void drain();
  // Throws what went wrong in the background so far, as drain() does.
  void check();
  // Seals and waits.
  void finish();

  bool active() const { return writer_ != nullptr; }
  double last_stall() const { return background_->last_stall(); }

 private:
  std::vector<checkpoints::TensorView> chosen(const std::vector<checkpoints::TensorView>& views) const;
  // Runs in the background; what it throws stays.
  void write(const std::function<void()>& job);
  void throw_lost();

  std::filesystem::path journal_;
  checkpoints::Schedule schedule_;
  std::vector<size_t> tensors_;  // of the model, those that are stored
  std::unique_ptr<checkpoints::trajectory::Writer> writer_;
  std::mutex mutex_;
  std::exception_ptr lost_;
  std::unique_ptr<checkpoints::AsyncWriter> background_;  // after the writer: its thread ends first
  bool unsealed_ = false;
};

}  // namespace cairn
