// The data that the steps of a run read, also where its settings were others then.
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <vector>

#include "trainer/data/dataset.h"
#include "trainer/replay_record.h"

namespace cairn {

// Opens what is asked for and keeps it. One thread at a time; the datasets that it gives are for any.
class PastData {
 public:
  // Throws std::runtime_error where no run is.
  explicit PastData(std::filesystem::path run);

  struct Opened {
    config::RunConfig config;
    std::unique_ptr<data::Dataset> data;
  };
  // As run.yaml has them now. Throws config::ConfigError where data are missing, std::runtime_error where they changed.
  const Opened& now();
  // As the settings had them that made the step: those of run.yaml where they give the same order (its paths are the
  // ones of today), and for a step that was not made yet.
  const Opened& of(int64_t step);

  struct Stretch {
    int64_t first = 1, last = 0;  // steps, both ends included
    const data::Dataset* data = nullptr;
  };
  // The steps that were made; adjoining ones of one dataset in one stretch.
  std::vector<Stretch> stretches();

 private:
  const Opened& open(std::unique_ptr<Opened>& place, config::RunConfig config);

  RunRecord record_;
  std::unique_ptr<Opened> now_;
  std::map<int64_t, std::unique_ptr<Opened>> past_;  // by the last step that the settings made
  std::map<int64_t, const Opened*> chosen_;          // likewise; past_ or now_
};

}  // namespace cairn
