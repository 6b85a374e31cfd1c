// What the data order of a run hangs on: where a source stands at step n follows from the settings of steps 1 ... n, so
// those of steps that were made stay (trainer/data/sampler.h).
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "trainer/config/run_config.h"

namespace cairn {

// The first difference between two orders. Sources are compared by name and weight: their contents are what
// check_sources() compares, and the same text may lie elsewhere or be shards by now.
struct OrderChange {
  std::string key;       // "train.batch"
  std::string was, now;  // for people
  int64_t step = 1;      // the first that reads other rows
  bool staged = true;    // false: a key of the whole run (seed.data), which no stage and no fork can change
};
// Of the steps 1 ... last; none where all of them read the same rows.
std::optional<OrderChange> order_change(const config::RunConfig& was, const config::RunConfig& now, int64_t last);

// Throws config::ConfigError naming the key, both values and the way out, where `config` gives the steps 1 ... last,
// which were made, another order than the settings that build.json recorded. Later stages may be anything.
void check_order(const std::filesystem::path& run, const config::RunConfig& config, int64_t last);

}  // namespace cairn
