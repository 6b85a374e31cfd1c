// Replay against training: the same steps with the same settings, in turns, in one process.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace cairn::bench {

struct ReplayBenchOptions {
  std::string size = "14m";
  int steps = 8;    // of each round
  int rounds = 3;   // training and replay take turns
  std::string dir;  // where the runs go; empty: the folder for temporary files
};

// {"train_step_s", "replay_step_s", "ratio", "digest_s", "digest_share"}: medians over all steps but the first of each
// round; a step is what the journal's `seconds` are (the step and its digest), a replayed one is compared besides.
nlohmann::ordered_json bench_replay(const ReplayBenchOptions& options);

}  // namespace cairn::bench
