// From what was read to what is meant: paths, names, stages, `auto`; then the checks that need several keys.
#pragma once

#include "trainer/config/run_config.h"
#include "trainer/config/tree.h"

namespace cairn::config {

// paths.cpp: relative paths under `prefix` ("" or "stages.0.") become absolute, beside the file that names them or in
// the current folder; ConfigError where there is neither.
void resolve_paths(const RunConfig& config, const std::string& prefix, DataOptions& data);
void resolve_model_address(RunConfig& config);
// `path` as `where` names it: beside that file or in the current folder, absolute; empty where there is neither.
std::string absolute_path(const Location& where, const std::string& path);
// Sources without a name get one from their path; a name stands for one source in all stages.
void resolve_names(RunConfig& config);

// stages.cpp: fills config.stages from the `stages:` of the file, or with the one stage that is the run.
void resolve_stages(const Tree& root, RunConfig& config);

// check.cpp: everything that takes more than one key.
void check_run(const RunConfig& config);
// Sets micro_batch and lanes where they are `auto` and refuses a batch that they do not divide.
void resolve_batch(const RunConfig& config, const std::string& prefix, TrainOptions& train);

// `prefix + key` where the file has it, else `key`: what an error about a stage points at.
std::string key_in_stage(const RunConfig& config, const std::string& prefix, const std::string& key);

}  // namespace cairn::config
