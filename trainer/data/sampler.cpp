#include "trainer/data/sampler.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>
#include <stdexcept>

#include "trainer/data/permutation.h"

namespace cairn::data {
namespace {
void check_stage(const SamplerStage& stage, const std::vector<std::string>& names, size_t number, bool last) {
  const auto fail = [&](const std::string& what) {
    throw std::invalid_argument(fmt::format("stage {}: {}", number, what));
  };
  if (stage.batch < 1) fail(fmt::format("batch: {} is not positive", stage.batch));
  if (stage.steps <= 0 && !last) fail(fmt::format("steps: {}; only the last stage may have no end", stage.steps));
  if (stage.entries.empty()) fail("data.train names no source");
  std::set<int32_t> seen;
  for (const auto& entry : stage.entries) {
    if (!seen.insert(entry.source).second) {
      fail(fmt::format("the source '{}' is named twice; add the weights, or give each a `name` to read it twice",
                       names[entry.source]));
    }
    if (entry.windows < 1) fail(fmt::format("the source '{}' has no window", names[entry.source]));
  }
}

Mixture mixture_of(const SamplerStage& stage) {
  std::vector<double> weights;
  for (const auto& entry : stage.entries) weights.push_back(entry.weight);
  return Mixture(weights);
}
}  // namespace

Sampler::Sampler(uint64_t seed, std::vector<std::string> names, std::vector<SamplerStage> stages)
    : seed_(seed), names_(std::move(names)), stages_(std::move(stages)) {
  if (stages_.empty()) throw std::invalid_argument("a run needs at least one stage");
  struct Reached {
    Standing standing;
    int64_t layout;
  };
  std::vector<std::optional<Reached>> reached(names_.size());
  int64_t first_step = 1;
  for (size_t i = 0; i < stages_.size(); ++i) {
    const auto& stage = stages_[i];
    check_stage(stage, names_, i + 1, i + 1 == stages_.size());
    State state{first_step, mixture_of(stage), {}};
    const int64_t draws = std::max<int64_t>(stage.steps, 0) * stage.batch;
    for (size_t e = 0; e < stage.entries.size(); ++e) {
      const auto& entry = stage.entries[e];
      Standing standing;
      if (const auto& before = reached[entry.source]) {
        standing = before->standing;
        if (before->layout != entry.layout && standing.position > 0) standing = {standing.epoch + 1, 0};
      }
      state.standings.push_back(standing);
      const int64_t end = standing.position + state.mixture.count(static_cast<int32_t>(e), draws);
      reached[entry.source] = {{standing.epoch + end / entry.windows, end % entry.windows}, entry.layout};
    }
    states_.push_back(std::move(state));
    first_step += std::max<int64_t>(stage.steps, 0);
  }
}

int64_t Sampler::steps() const {
  return stages_.back().steps <= 0 ? -1 : states_.back().first_step + stages_.back().steps - 1;
}

int64_t Sampler::stage(int64_t step) const {
  const int64_t last = steps();
  if (step < 1 || (last >= 0 && step > last)) {
    throw std::invalid_argument(last >= 0 ? fmt::format("step {} is not one of the run's steps 1 to {}", step, last)
                                          : fmt::format("step {}: steps count from 1", step));
  }
  int64_t stage = static_cast<int64_t>(stages_.size()) - 1;
  while (states_[stage].first_step > step) --stage;
  return stage;
}

Sampler::Draw Sampler::at(int64_t step, int64_t row) const {
  const int64_t number = stage(step);
  const auto& settings = stages_[number];
  const auto& state = states_[number];
  const auto place = state.mixture.at((step - state.first_step) * settings.batch + row);
  const auto& entry = settings.entries[place.source];
  const int64_t position = state.standings[place.source].position + place.index;
  const int64_t epoch = state.standings[place.source].epoch + position / entry.windows;
  return {entry.source, epoch,
          Permutation(seed_, names_[entry.source], epoch, entry.windows)(position % entry.windows)};
}

std::vector<Sampler::Place> Sampler::find(int64_t stage, int32_t source, int64_t window, int64_t last_step) const {
  std::vector<Place> places;
  const auto& settings = stages_[stage];
  const auto& state = states_[stage];
  if (settings.steps > 0) last_step = std::min(last_step, state.first_step + settings.steps - 1);
  if (last_step < state.first_step) return places;
  const int64_t draws = (last_step - state.first_step + 1) * settings.batch;
  for (size_t e = 0; e < settings.entries.size(); ++e) {
    const auto& entry = settings.entries[e];
    if (entry.source != source) continue;
    const auto& standing = state.standings[e];
    const int64_t count = state.mixture.count(static_cast<int32_t>(e), draws);
    for (int64_t pass = 0; pass * entry.windows < standing.position + count; ++pass) {
      const int64_t epoch = standing.epoch + pass;
      const int64_t index = pass * entry.windows +
                            Permutation(seed_, names_[source], epoch, entry.windows).inverse(window) -
                            standing.position;
      if (index < 0 || index >= count) continue;
      const int64_t draw = state.mixture.draw_of(static_cast<int32_t>(e), index);
      places.push_back({state.first_step + draw / settings.batch, draw % settings.batch, epoch});
    }
  }
  return places;
}

}  // namespace cairn::data
