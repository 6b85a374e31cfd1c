// A run's folder: what is written into it, and how a state is read back.
#pragma once

#include <filesystem>

#include "checkpoints/async_writer.h"
#include "checkpoints/store.h"
#include "trainer/config/run_config.h"
#include "trainer/setup.h"
#include "trainer/state.h"

namespace cairn {

// The rules of `checkpoints:` as the store takes them.
checkpoints::Schedule checkpoint_schedule(const config::CheckpointOptions& options);

// The mean over all validation sets, as the manifests name it: what `checkpoints.keep.best` goes by.
inline constexpr const char* kMeanLoss = "mean_nll";

// build.json (with the settings and the digests of the sources) and run.yaml, which makes the folder a run. A run that
// goes on after `step` keeps what it recorded; what a change of run.yaml brought is added.
void write_run_files(const std::filesystem::path& run, const config::RunConfig& config,
                     const nlohmann::ordered_json& build, const data::Dataset& data, bool resuming, int64_t step);

// The settings that were changed in run.yaml since the run was last started: {"key", "was", "now"} each.
std::vector<nlohmann::ordered_json> changed_settings(const std::filesystem::path& run, const config::RunConfig& config);

// Throws std::runtime_error naming the source whose data are not those that build.json recorded: a step of other data
// would not be a step of this run.
void check_sources(const std::filesystem::path& run, const data::Dataset& data);

// Saves states of one run, in the background where asked.
class Saver {
 public:
  Saver(checkpoints::Store& store, const config::RunConfig& config, const data::Tokenizer& tokenizer, bool background);
  // Commits the state as step-N; the loop waits for one memory copy. Collective with ZeRO-1 (then `writes` is true on
  // rank 0 alone).
  void save(State& state, const nlohmann::ordered_json& state_json, const nlohmann::ordered_json& about, bool writes);
  // Allocates the snapshot ahead of the first save.
  void reserve(State& state);
  // Waits for what is in flight; throws what went wrong.
  void drain() { writer_.drain(); }
  // Throws what went wrong in the background so far.
  void check() { writer_.check(); }
  double last_stall() const { return writer_.last_stall(); }
  double last_copy() const { return writer_.last_copy(); }

 private:
  checkpoints::Store& store_;
  checkpoints::Retention retention_;
  bool background_;
  std::vector<std::pair<std::string, std::string>> tokenizer_files_;
  checkpoints::AsyncWriter writer_;
};

// Fills a state from a committed checkpoint folder whose digests have been checked. Returns training/state.json.
nlohmann::ordered_json load_state(State& state, const std::filesystem::path& folder);

// The newest checkpoint folder of RUN, or the folder itself where it is a model. Throws where there is none.
std::filesystem::path model_folder(const std::string& address);

}  // namespace cairn
