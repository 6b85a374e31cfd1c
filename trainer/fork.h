// `cairn fork`: a new run from any state of another, with changed settings.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "trainer/config/run_config.h"
#include "trainer/replay_steps.h"

namespace cairn {

struct ForkOptions {
  std::filesystem::path run;         // the parent
  int64_t step = 0;                  // its state
  std::filesystem::path child;       // a folder that does not exist, or is empty
  std::vector<std::string> changes;  // key=value
  RebuildTalk talk;
};

struct ForkReport {
  std::string parent_digest,
      digest;  // of the state; they differ where the changes give it another optimizer or average
  std::vector<nlohmann::ordered_json> changed;  // {"key", "was", "now"}: settings of the step after
};

// Makes the child, ready to be resumed at `step`: the state (rebuilt by replay where it is not stored), the parent's
// journal up to there, run.yaml, and build.json with "parent" {"run", "step", "digest"} and the settings that made the
// steps so far. The parent gets a line in forks.jsonl. Throws config::ConfigError for the changes, std::runtime_error
// where the child is a run already or the state cannot be had; then nothing is left behind.
ForkReport fork_run(const ForkOptions& options);

}  // namespace cairn
