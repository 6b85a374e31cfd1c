#include "trainer/spike.h"

#include <algorithm>
#include <vector>

namespace cairn {

void SpikeRule::remember(double loss, int window) {
  losses_.push_back(loss);
  while (losses_.size() > static_cast<size_t>(window)) losses_.pop_front();
}

double SpikeRule::threshold(const config::SpikeOptions& options) const {
  if (options.action == "none" || losses_.size() < static_cast<size_t>(options.window)) return 0;
  std::vector<double> sorted(losses_.begin(), losses_.end());
  std::nth_element(sorted.begin(), sorted.begin() + sorted.size() / 2, sorted.end());
  return options.factor * sorted[sorted.size() / 2];
}

}  // namespace cairn
