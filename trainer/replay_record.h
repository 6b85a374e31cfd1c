// What a run recorded of itself, read from its folder and never written: the journal, the settings in force at each
// step, the states to start a replay from.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "checkpoints/journal.h"
#include "checkpoints/store.h"
#include "trainer/config/run_config.h"

namespace cairn {

// A fork names the state that it began from.
struct Parent {
  std::filesystem::path run;
  int64_t step = 0;
  std::string digest;  // of the parent's state
};

class RunRecord {
 public:
  // Throws std::runtime_error where no run is, or its journal or build.json are damaged. A run that is training at this
  // moment is read as far as it is now.
  explicit RunRecord(std::filesystem::path run);

  const std::filesystem::path& run() const { return run_; }
  const nlohmann::ordered_json& build() const { return build_; }  // build.json
  const std::optional<Parent>& parent() const { return parent_; }

  bool has_journal() const { return has_journal_; }
  // The last step that was made (0: none); a step that ended the run before its update was not.
  int64_t last_step() const { return last_step_; }
  // Lines of the steps from ... to, where they are there.
  std::map<int64_t, nlohmann::ordered_json> lines(int64_t from, int64_t to) const;
  // The digest that the journal has of the state of step n; "" where it has none.
  std::string digest_of(int64_t step) const;
  // The first step from `step` on (and from 1) whose digest the journal has; none: 0.
  int64_t witness(int64_t step) const;

  // The settings that made step n, for one rank: what was changed later does not count. Throws config::ConfigError.
  config::RunConfig settings_at(int64_t step) const;
  // The same as build.json has them, as they were resolved for all ranks.
  nlohmann::ordered_json settings_json(int64_t step) const;
  // The last step that the same settings made.
  int64_t settings_until(int64_t step) const;

  // A state with its optimizer: a checkpoint of the run, of the run that it was forked from, or of the cache.
  struct Base {
    int64_t step = 0;
    std::filesystem::path folder;
  };
  // Bases at or before `step`, the nearest first. `cached`: those that replays left, too.
  std::vector<Base> bases(int64_t step, bool cached) const;
  // The run's own checkpoints, ascending, whole or not.
  std::map<int64_t, std::filesystem::path> stored() const;

 private:
  std::filesystem::path run_;
  nlohmann::ordered_json build_;
  std::optional<Parent> parent_;
  bool has_journal_ = false;
  std::string journal_;  // as it was when the record was read
  checkpoints::JournalIndex index_;
  int64_t last_step_ = 0;
};

// build.json's list of the settings that were in force before a change: [{"last_step", "settings"}], ascending. Adds
// those of `build` itself ("settings"), whose last step is `step`, and drops what lies behind.
void retire_settings(nlohmann::ordered_json& build, int64_t step);
// The settings of a run that goes on after `step`: where they are others than before, those are retired.
void note_settings(nlohmann::ordered_json& build, int64_t step, const nlohmann::ordered_json& settings);

// The seconds that the journal gives for the lines.
double seconds_of(const std::map<int64_t, nlohmann::ordered_json>& lines);

}  // namespace cairn
