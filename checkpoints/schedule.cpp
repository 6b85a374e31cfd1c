#include "checkpoints/schedule.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <set>

namespace cairn::checkpoints {
namespace {

bool on_grid(Spacing spacing, int64_t step) {
  if (spacing == Spacing::none || step < 0) return false;
  if (step == 0) return true;
  if (spacing == Spacing::doubling) return std::has_single_bit(static_cast<uint64_t>(step));
  while (step % 10 == 0) step /= 10;
  return step == 1 || step == 2 || step == 5;
}

bool has(const std::vector<int64_t>& steps, int64_t step) {
  return std::find(steps.begin(), steps.end(), step) != steps.end();
}

}  // namespace

bool Schedule::due(int64_t step, int64_t last_step) const {
  return (every > 0 && step > 0 && step % every == 0) || on_grid(log_spaced, step) || has(at, step) ||
         (at_end && last_step >= 0 && step == last_step);
}

std::vector<int64_t> Retention::to_delete(const std::vector<int64_t>& steps,
                                          const std::function<std::optional<double>(int64_t)>& value) const {
  if (all || steps.empty()) return {};
  std::set<int64_t> keep(at.begin(), at.end());
  const size_t newest = std::min<size_t>(std::max<int64_t>(last, 1), steps.size());
  keep.insert(steps.end() - newest, steps.end());
  for (int64_t step : steps)
    if (every > 0 && step % every == 0) keep.insert(step);
  if (best > 0 && value) {
    std::vector<std::pair<double, int64_t>> ranked;
    for (int64_t step : steps)
      if (const auto v = value(step); v && !std::isnan(*v)) ranked.emplace_back(lower_is_better ? *v : -*v, step);
    std::sort(ranked.begin(), ranked.end());
    for (size_t k = 0; k < ranked.size() && k < static_cast<size_t>(best); ++k) keep.insert(ranked[k].second);
  }
  std::vector<int64_t> gone;
  for (int64_t step : steps)
    if (!keep.contains(step)) gone.push_back(step);
  return gone;
}

}  // namespace cairn::checkpoints
