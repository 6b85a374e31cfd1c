// What happened in a run, read from its folder without a model: journal, checkpoints, build.json, forks.
#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "checkpoints/store.h"

namespace cairn {

// A value of a validation set.
struct Validated {
  int64_t step = 0;
  double nll = 0, bits_per_byte = 0;  // nats a token; bits a byte of text
};

// Steps that a replay on this machine cannot be held to the journal's digests for.
struct Unverified {
  int64_t from = 0, to = 0;
  std::string why;
};

// A run of the family: a child begins at step `at` of its parent.
struct Relative {
  std::string run;
  int64_t at = 0;
  bool found = true;  // a run is there
  std::vector<Relative> children;
};

struct Timeline {
  std::filesystem::path run;
  nlohmann::ordered_json build;  // run_files.h: read_build
  int64_t steps = 0;             // the last one of the journal
  bool torn = false;             // the journal's last line is torn
  nlohmann::ordered_json last;   // the journal's last line; null where there is none

  std::vector<checkpoints::StoredStep> stored;
  std::vector<checkpoints::DamagedStep> damaged;
  std::vector<nlohmann::ordered_json> events;  // {"step", "event", ...} as the journal has them
  std::vector<nlohmann::ordered_json> stages;  // {"name", "from", "to"}: the steps that each makes
  std::map<std::string, std::vector<Validated>> validation;

  // Addresses RUN@first ... RUN@steps: stored, or replayed from the nearest base before (a fork's may be its parent's).
  int64_t first = 0;
  std::vector<int64_t> bases;  // where a replay can begin: the initialisation, checkpoints with their optimizer
  int64_t longest_replay = 0;  // steps from a base to the address farthest from it
  double step_seconds = 0;     // of a late step; 0: not known
  std::vector<Unverified> unverified;

  std::vector<Relative> ancestors;  // the root first; `at`: the step that the next one began at
  std::vector<Relative> children;   // with their own
};

// Parses of the journal only what is needed: 100,000 lines take well under half a second. Throws std::runtime_error
// where the journal or build.json is damaged.
Timeline read_timeline(const std::filesystem::path& run);

}  // namespace cairn
