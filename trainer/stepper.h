// What a step needs, and nothing of journals, consoles or folders: settings, data, state, past losses. The loop and a
// replay both make their steps here, so that they cannot differ.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "trainer/config/run_config.h"
#include "trainer/data/dataset.h"
#include "trainer/objectives/objective.h"
#include "trainer/setup.h"
#include "trainer/spike.h"
#include "trainer/state.h"
#include "trainer/step.h"

namespace cairn {

// A step that was made.
struct Advance {
  int64_t step = 0;  // its number
  StepResult result;
  StepSettings settings;
  nlohmann::ordered_json events = nlohmann::ordered_json::array();  // what the journal says of it: nonfinite, spike
  std::string stop;  // nonfinite, spike: the run ends here, the state is still that of the step before; else empty
};

class Stepper {
 public:
  // `world` outlives it.
  Stepper(config::RunConfig config, parallel::World& world) : config_(std::move(config)), world_(world) {}

  // Tokenizer, model configuration, data. `run`: the folder of the run where it was started before; one that began with
  // the weights of another model has what it needs of that in its own checkpoints. Throws config::ConfigError,
  // std::runtime_error for bad data.
  void prepare(const data::ProgressCallback& progress = {}, const std::filesystem::path& run = {});
  // Memory for the state. What this machine or this number of ranks cannot do is refused before. Collective.
  void open();
  // The state before the first step: from the seed, or the weights of model.from.
  void initialise();
  // The state of a committed checkpoint folder, whose files have been checked; returns its training/state.json. Throws
  // std::runtime_error where the state does not have the digest that was recorded with it. Collective.
  nlohmann::ordered_json load(const std::filesystem::path& folder);
  // The state that another one stands at, which goes on here under other settings. Moments and averages of the same
  // name carry over; an average that is new starts at the weights.
  void take(Stepper& other);
  // What the spike rule has to know of a step that was made before, from its line of the journal; in order.
  void remember(const nlohmann::ordered_json& line);

  // Turns state n-1 into state n. Collective.
  Advance advance(StepObserver* observer = nullptr);

  // Optimizer and checkpointing of the stage that trains step n; called by advance().
  const config::Stage& enter_stage(int64_t step);

  const config::RunConfig& config() const { return config_; }
  const TokenizerPtr& tokenizer() const { return tokenizer_; }
  const models::DecoderConfig& decoder_config() const { return decoder_config_; }
  const data::Dataset& data() const { return *data_; }
  Objective& objective() { return *objective_; }
  std::optional<int64_t> last() const { return last_; }  // the run's last step; none where only the clock ends it
  State& state() { return *state_; }
  int64_t step() const { return state_->step; }

  int64_t tokens = 0;  // inputs that all steps so far read

 private:
  config::RunConfig config_;
  parallel::World& world_;
  TokenizerPtr tokenizer_;
  models::DecoderConfig decoder_config_;
  std::unique_ptr<data::Dataset> data_;
  std::unique_ptr<Objective> objective_;
  std::optional<int64_t> last_;
  std::unique_ptr<State> state_;
  const config::Stage* stage_ = nullptr;
  SpikeRule spikes_;
};

}  // namespace cairn
