// The makers of all metrics; metrics.cpp has the table.
#pragma once

#include "trainer/analysis/analysis.h"

namespace cairn::analysis {

Metric norm_metric();
Metric drift_metric();
Metric change_metric();
Metric sparsity_metric();
Metric outliers_metric();
Metric spectrum_metric();
Metric barrier_metric();
Metric averaged_metric();
Metric learning_metric();
Metric memorised_metric();
Metric experts_metric();
Metric cka_metric();

}  // namespace cairn::analysis
