// Checkpoints of a run being written and read back.
#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "checkpoints/async_writer.h"
#include "checkpoints/shared_folder.h"
#include "checkpoints/store.h"
#include "trainer/config/run_config.h"
#include "trainer/setup.h"
#include "trainer/state.h"

namespace cairn {

// Saves states of one run, in the background where asked. Where there are several ranks each writes a part of every
// checkpoint; they meet in its hidden folder (checkpoints::SharedFolder), and the first commits.
class Saver {
 public:
  // store: opened for writing on the first rank.
  Saver(checkpoints::Store& store, const config::RunConfig& config, const data::Tokenizer& tokenizer, bool background);
  // Commits the state as step-N; the loop waits for one memory copy. Collective. Both documents: the first rank's
  // count.
  void save(State& state, const nlohmann::ordered_json& state_json, const nlohmann::ordered_json& about);
  // Allocates the snapshot ahead of the first save. Collective.
  void reserve(State& state);
  // Waits for what is in flight on this rank (on the first: until it is committed); throws what went wrong.
  void drain() { writer_.drain(); }
  // Throws what went wrong in the background so far.
  void check() { writer_.check(); }
  // Called in the background on the first rank before a checkpoint appears: what it promises beside itself is on the
  // disk then.
  std::function<void()> before_commit;
  double last_stall() const { return writer_.last_stall(); }
  double last_copy() const { return writer_.last_copy(); }

 private:
  void join(parallel::World& world);
  void save_alone(State& state, const nlohmann::ordered_json& state_json, const nlohmann::ordered_json& about);
  void save_shared(State& state, const nlohmann::ordered_json& state_json, const nlohmann::ordered_json& about);

  checkpoints::Store& store_;
  checkpoints::Retention retention_;
  bool background_;
  std::string attempt_;  // see checkpoints::Writer
  std::vector<std::pair<std::string, std::string>> tokenizer_files_;
  checkpoints::AsyncWriter writer_;
};

// Fills a state from a committed checkpoint folder whose digests have been checked, whoever wrote it. Returns
// training/state.json.
nlohmann::ordered_json load_state(State& state, const std::filesystem::path& folder);

}  // namespace cairn
