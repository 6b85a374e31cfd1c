// Where a step's batch comes from and what its loss is: pretrain and sft read a data set, grpo samples.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "trainer/setup.h"
#include "trainer/state.h"
#include "trainer/step.h"

namespace cairn {

class Objective {
 public:
  virtual ~Objective() = default;
  // What step n = state.step + 1 reads and how it learns from it: a function of the state, n and the settings alone.
  // What it refers to stays until the next call. Collective over the ranks of the state's world.
  virtual StepData step(State& state, int64_t n, const StepSettings& settings) = 0;
  // Of the step that was made last: what its line of the journal says besides; null: nothing.
  virtual nlohmann::ordered_json metrics() const { return nullptr; }
  // Likewise its samples, the lines of RUN/rollouts/step-N.jsonl.
  virtual std::vector<nlohmann::ordered_json> samples() const { return {}; }
  // How well the model does now, of at most `count` held-out problems: {name: {metric: value}}; null: by data sets.
  virtual nlohmann::ordered_json evaluate(State& state, const StepSettings& settings, int64_t count) { return nullptr; }
};

// By config.objective. `data` outlives it. Throws config::ConfigError where settings do not fit the tokenizer or the
// model; std::runtime_error for bad files of a task.
std::unique_ptr<Objective> make_objective(const config::RunConfig& config, TokenizerPtr tokenizer,
                                          const models::DecoderConfig& decoder, const data::Dataset& data);

}  // namespace cairn
