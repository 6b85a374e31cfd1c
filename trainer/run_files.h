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

// RUN/build.json; an empty object where there is none. Throws std::runtime_error naming the file where it is no JSON.
//   program compiler torch mkl processor vectors mkl_cbwr aten_cpu_capability threads   build_info() of the start
//   device       "cpu", or the GPU's kind and the version of CUDA
//   started      UTC
//   settings     every setting, as run.yaml has them
//   run_yaml     XXH3-128 of run.yaml
//   sources      [{name, path, tokens, documents, digest, files_digest}] of training
//   validation   the same of the named validation sets
//   former_settings  [{last_step, settings}]: what made the steps up to last_step, where settings changed since
//   changes      [{key, was, now, after_step}] of settings and of validation data
//   machines     [{after_step, ...build_info()}]: from that step on another machine, library or number of threads
//   resumptions  [{after_step, time}]
//   parent       {run, step, digest} of a fork
//   self         XXH3-128 of the rest, last (taken out on reading)
nlohmann::ordered_json read_build(const std::filesystem::path& run);
void write_build(const std::filesystem::path& run, nlohmann::ordered_json build);
// What is wrong with the bytes of build.json; "" where nothing is.
std::string build_fault(const std::filesystem::path& run);

// What build.json says of the machine that made the step after `step`: the keys of build_info().
nlohmann::ordered_json machine_after(const nlohmann::ordered_json& build, int64_t step);
// "threads is 1, was 2": where two machines differ; `bits`: in what may change the bits of a step (threads do not).
std::vector<std::string> machine_differences(const nlohmann::ordered_json& was, const nlohmann::ordered_json& now,
                                             bool bits = false);

// build.json and run.yaml, which makes the folder a run. A run that goes on after `step` keeps what it recorded; what
// changed since is added. Returns a line for each change of validation data or of the machine, for the console.
std::vector<std::string> write_run_files(const std::filesystem::path& run, const config::RunConfig& config,
                                         const nlohmann::ordered_json& build, const data::Dataset& data, bool resuming,
                                         int64_t step);

// The settings that were changed in run.yaml since the run was last started: {"key", "was", "now"} each.
std::vector<nlohmann::ordered_json> changed_settings(const std::filesystem::path& run, const config::RunConfig& config);

// Throws std::runtime_error naming the source whose data are not those that build.json recorded: a step of other data
// would not be a step of this run. (Validation sets change no step: write_run_files notes what changed there.)
void check_sources(const std::filesystem::path& run, const data::Dataset& data);

}  // namespace cairn
