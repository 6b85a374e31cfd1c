// When a loss is a spike: above a factor of the median of the losses before it.
#pragma once

#include <cstdint>
#include <deque>

#include "trainer/config/options.h"

namespace cairn {

class SpikeRule {
 public:
  // Adds the loss of a step, in order; the last `window` count. Losses that are not finite are not given.
  void remember(double loss, int window);
  // A loss above it is a spike; 0 where there is no rule or too little past.
  double threshold(const config::SpikeOptions& options) const;

 private:
  std::deque<double> losses_;
};

}  // namespace cairn
