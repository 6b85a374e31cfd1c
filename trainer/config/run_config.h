// RunConfig: what a YAML file and the overrides of the command line say, checked and resolved.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/config/location.h"
#include "trainer/config/rl_options.h"

namespace cairn::config {

// A stretch of steps with settings of its own. Without `stages:` there is one, which holds the whole run.
struct Stage {
  std::string name;
  int64_t first = 0;             // the stage trains steps first + 1 ... first + steps
  std::optional<int64_t> steps;  // null: not known before the data are (epochs) or the clock is (minutes)
  DataOptions data;              // every section complete: what the stage changes is laid over the run's own
  OptimOptions optim;
  IndexerOptions indexer;
  ExpertsOptions experts;
  TrainOptions train;
  // The schedule's clock: step n of the run is step n - schedule_first of the schedule, which lasts schedule_steps.
  // A stage that sets optim.schedule has a schedule of its own over its steps; all others share the run's.
  int64_t schedule_first = 0;
  std::optional<int64_t> schedule_steps;
  Json overrides = Json::object();  // what the file says beyond name and steps, resolved; empty without `stages:`
  bool operator==(const Stage&) const = default;
};

struct RunConfig {
  std::string objective = "pretrain";
  SeedOptions seed;
  ModelOptions model;
  DataOptions data;
  OptimOptions optim;
  IndexerOptions indexer;
  ExpertsOptions experts;
  TrainOptions train;
  CheckpointOptions checkpoints;
  TrajectoryOptions trajectory;
  EvalOptions eval;
  ParallelOptions parallel;
  MetricsOptions metrics;
  RlOptions rl;  // objective grpo, and the three after it
  RolloutOptions rollout;
  TaskOptions task;
  std::vector<RewardOptions> rewards;
  std::vector<Stage> stages;  // never empty after load()
  bool staged = false;        // the file has `stages:`

  std::map<std::string, Location> locations;  // "model.hidden_size", "data.train.0.text" -> where it was written

  // The stage that trains step n (n >= 1); the last one beyond the end.
  const Stage& stage_of(int64_t step) const;
  // Steps in all, where steps, tokens or stages say so: the least of them.
  std::optional<int64_t> total_steps() const;

  // Where `key` ("model.hidden_size") was written; where it was not, the nearest section around it.
  Location locate(std::string_view key) const;
  // Throws ConfigError "FILE:LINE: model.hidden_size: MESSAGE".
  [[noreturn]] void fail(std::string_view key, std::string_view message) const;

  // Equal settings; where they were written does not count.
  bool operator==(const RunConfig& other) const;
};

// Reads FILE with its `base:` includes, lays `overrides` ("optim.lr=1e-3", "data.train.0.text=a.txt") over it, checks
// everything that can be checked without the data or the model's code, and makes paths absolute: a relative one is
// looked for beside the file that names it, then in the current folder. Throws ConfigError; runtime_error where a file
// cannot be read.
RunConfig load(const std::filesystem::path& file, const std::vector<std::string>& overrides = {});

// The same from a string; `name` stands for the file in messages and for its folder in relative paths.
RunConfig parse(const std::string& yaml, const std::string& name, const std::vector<std::string>& overrides = {});

// Throws ConfigError "FILE:LINE: KEY: found ..., where there is nothing" for a text, shards or a tokenizer that is not
// there. load() takes absolute paths as they are, so that a run whose data have gone can still be looked at.
void require_paths(const RunConfig& config);

// Every setting, defaults too: what run.yaml holds. load() of it gives an equal RunConfig from any folder.
std::string to_yaml(const RunConfig& config);
Json to_json(const RunConfig& config);

// All keys as a person reads them, one line each: name, default, what it means, what is allowed.
std::string describe();

}  // namespace cairn::config
