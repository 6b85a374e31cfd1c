#include "trainer/analysis/metrics.h"

namespace cairn::analysis {

const std::vector<Metric>& metrics() {
  static const std::vector<Metric> kMetrics = {
      norm_metric(),    drift_metric(),    change_metric(),   sparsity_metric(),  outliers_metric(), spectrum_metric(),
      barrier_metric(), averaged_metric(), learning_metric(), memorised_metric(), experts_metric(),  cka_metric(),
  };
  return kMetrics;
}

}  // namespace cairn::analysis
