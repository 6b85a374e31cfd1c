// The loop around train_step: stages, evaluation, samples, journal, checkpoints, signals.
#pragma once

#include <filesystem>

#include "trainer/config/run_config.h"
#include "trainer/parallel/world.h"

namespace cairn {

struct TrainReport {
  int64_t step = 0;        // the state that the run stands at
  double loss = 0;         // of the last step
  std::string stopped_by;  // end, signal, minutes, nonfinite, spike
};

// Starts a run in a folder that holds none. Throws std::runtime_error where the folder is a run already.
TrainReport start_run(const config::RunConfig& config, const std::filesystem::path& run, parallel::World& world,
                      bool quiet);

// Goes on from the last committed step, bit for bit; a damaged checkpoint is passed over, named, for the one before it.
TrainReport resume_run(const std::filesystem::path& run, parallel::World& world, bool quiet);

// What a run would take, without starting it: parameters, memory, disk, steps, data. Human-readable and JSON.
nlohmann::ordered_json dry_run(const config::RunConfig& config);

}  // namespace cairn
