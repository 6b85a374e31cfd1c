// The data order: which window of which source row r of step n reads. Pure arithmetic on numbers of windows.
//
// Row r of step n of a stage is draw (n - first step) * batch + r of that stage. The mixture (mixture.h) gives the draw
// to a source; the source counts its own draws over all stages, and its j-th one of an epoch is window P(j) of the
// permutation P of (seed, source name, epoch) (permutation.h). So within an epoch a source gives every window once, and
// a change of mixture, batch or steps between stages neither repeats nor skips what it gave. NOTE: a change of layout
// (context) makes other windows: the source then begins its next epoch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/data/mixture.h"

namespace cairn::data {

struct SamplerStage {
  int64_t steps = 0, batch = 1;  // steps <= 0: no end; the last stage only
  struct Entry {
    int32_t source;  // index into the names
    double weight;
    int64_t windows;  // of the source in this stage's layout; equal layouts have equal numbers
    int64_t layout;   // what the windows depend on: the context
  };
  std::vector<Entry> entries;
};

class Sampler {
 public:
  // Throws std::invalid_argument for a stage without sources, a batch below 1, a source without windows, a source twice
  // in a stage, an endless stage that is not the last.
  Sampler(uint64_t seed, std::vector<std::string> names, std::vector<SamplerStage> stages);

  int64_t steps() const;              // -1: no end
  int64_t stage(int64_t step) const;  // throws std::invalid_argument for a step outside 1 .. steps()
  int64_t first_step(int64_t stage) const { return states_[stage].first_step; }
  const SamplerStage& settings(int64_t stage) const { return stages_[stage]; }

  struct Draw {
    int32_t source;
    int64_t epoch, window;
  };
  Draw at(int64_t step, int64_t row) const;

  struct Place {
    int64_t step, row, epoch;
  };
  // Every place in the steps 1 .. last_step of `stage` that reads the window.
  std::vector<Place> find(int64_t stage, int32_t source, int64_t window, int64_t last_step) const;

 private:
  struct Standing {  // of an entry at the start of its stage
    int64_t epoch = 0, position = 0;
  };
  struct State {
    int64_t first_step;
    Mixture mixture;
    std::vector<Standing> standings;  // one an entry
  };

  uint64_t seed_;
  std::vector<std::string> names_;
  std::vector<SamplerStage> stages_;
  std::vector<State> states_;
};

}  // namespace cairn::data
