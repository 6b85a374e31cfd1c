// Of one state's tensors: how large, how sparse, how heavy-tailed.
#include "checkpoints/analysis/statistics.h"
#include "trainer/analysis/metrics.h"

namespace cairn::analysis {
namespace {

Findings norms(const States& states, size_t i) {
  const auto weights = states.weights(i);
  Findings found;
  double squares = 0;
  int64_t count = 0;
  for (const std::string& name : weights->names()) {
    const auto s = checkpoints::weight_statistics(weights->get(name).view);
    found.push_back(number("norm", s.norm, name));
    found.push_back(number("rms", s.rms, name));
    squares += s.sum_squares;
    count += s.count;
  }
  found.push_back(number("norm", std::sqrt(squares)));
  found.push_back(number("rms", std::sqrt(squares / static_cast<double>(count))));
  return found;
}

Findings sparsity(const States& states, size_t i) {
  const auto weights = states.weights(i);
  const std::vector<double>& thresholds = states.settings().thresholds;
  const auto columns = static_cast<int64_t>(thresholds.size());
  Findings found;
  std::vector<double> below(thresholds.size(), 0.0);
  double count = 0;
  for (const std::string& name : weights->names()) {
    const auto s = checkpoints::weight_statistics(weights->get(name).view, thresholds);
    found.push_back(array("sparsity", {columns}, s.below, name));
    for (size_t t = 0; t < thresholds.size(); ++t) below[t] += s.below[t] * static_cast<double>(s.count);
    count += static_cast<double>(s.count);
  }
  for (double& share : below) share /= count;
  found.push_back(array("sparsity", {columns}, below));
  return found;
}

Findings outliers(const States& states, size_t i) {
  const auto weights = states.weights(i);
  Findings found;
  for (const std::string& name : weights->names()) {
    const auto s = checkpoints::weight_statistics(weights->get(name).view);
    found.push_back(number("kurtosis", s.kurtosis, name));
    found.push_back(number("beyond_6sigma", s.beyond_6sigma, name));
    found.push_back(number("max_over_rms", s.max_over_rms, name));
  }
  return found;
}

}  // namespace

Metric norm_metric() {
  return {.name = "norm",
          .help = "Frobenius norm and root mean square of each tensor and of all",
          .kind = Kind::weights,
          .series = {"norm", "rms"},
          .measure = norms};
}

Metric sparsity_metric() {
  return {.name = "sparsity",
          .help = "share of the weights with |w| at most each of --thresholds",
          .kind = Kind::weights,
          .series = {"sparsity"},
          .parameters = [](const States& s) { return fmt::format("{}", fmt::join(s.settings().thresholds, " ")); },
          .check =
              [](const States& s) {
                if (s.settings().thresholds.empty())
                  throw std::invalid_argument("--thresholds: at least one is needed");
              },
          .measure = sparsity};
}

Metric outliers_metric() {
  return {.name = "outliers",
          .help = "kurtosis (normal: 3), share beyond 6 standard deviations of the mean, largest |w| over the RMS",
          .kind = Kind::weights,
          .series = {"kurtosis", "beyond_6sigma", "max_over_rms"},
          .measure = outliers};
}

}  // namespace cairn::analysis
