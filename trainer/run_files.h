// A run's folder: what is written into it, and how a state is read back.
#pragma once

#include <filesystem>

#include "checkpoints/async_writer.h"
#include "checkpoints/store.h"
#include "trainer/config/run_config.h"
#include "trainer/saver.h"
#include "trainer/setup.h"

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

// The newest checkpoint folder of RUN, or the folder itself where it is a model. Throws where there is none.
std::filesystem::path model_folder(const std::string& address);

}  // namespace cairn
