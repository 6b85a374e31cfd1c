// Singular values of every matrix and what they say.
#include "checkpoints/analysis/spectrum.h"

#include "checkpoints/analysis/elements.h"
#include "trainer/analysis/metrics.h"

namespace cairn::analysis {
namespace {

// [..., m, n] -> [batch, m, n], float64; undefined where the tensor is no matrix of at least 2 x 2.
at::Tensor matrices_of(const checkpoints::TensorView& view) {
  const size_t rank = view.shape.size();
  if (rank < 2 || view.shape[rank - 1] < 2 || view.shape[rank - 2] < 2 || view.numel() == 0) return {};
  at::Tensor values = at::empty({view.numel()}, at::kDouble);
  checkpoints::read_elements(view, 0, {values.data_ptr<double>(), static_cast<size_t>(view.numel())});
  return values.view({-1, view.shape[rank - 2], view.shape[rank - 1]});
}

Findings spectrum(const States& states, size_t i) {
  const auto weights = states.weights(i);
  at::NoGradGuard no_grad;
  Findings found;
  for (const std::string& name : weights->names()) {
    const at::Tensor matrices = matrices_of(weights->get(name).view);
    if (!matrices.defined()) continue;
    for (int64_t k = 0; k < matrices.size(0); ++k) {
      const std::string entry = matrices.size(0) == 1 ? name : fmt::format("{}.{}", name, k);  // stacked experts
      if (!at::isfinite(matrices[k]).all().item<bool>())
        throw std::runtime_error(fmt::format("{} is not finite", entry));
      const at::Tensor sigma = at::linalg_svdvals(matrices[k]).contiguous();  // descending
      const std::vector<double> values(sigma.data_ptr<double>(), sigma.data_ptr<double>() + sigma.numel());
      std::vector<double> squares;
      for (const double s : values) squares.push_back(s * s);
      const auto law = checkpoints::fit_power_law(squares);
      found.push_back(array("singular_values", {sigma.numel()}, values, entry));
      found.push_back(number("effective_rank", checkpoints::effective_rank(values), entry));
      found.push_back(number("stable_rank", checkpoints::stable_rank(values), entry));
      found.push_back(number("power_law_alpha", law.alpha, entry));
      found.push_back(number("power_law_distance", law.distance, entry));
    }
  }
  return found;
}

}  // namespace

Metric spectrum_metric() {
  return {.name = "spectrum",
          .help =
              "singular values of each matrix; effective rank (exp of the entropy of s / sum s), stable rank, and the "
              "power law of s^2 (Clauset 2009) with its Kolmogorov-Smirnov distance",
          .kind = Kind::weights,
          .series = {"singular_values", "effective_rank", "stable_rank", "power_law_alpha", "power_law_distance"},
          .measure = spectrum};
}

}  // namespace cairn::analysis
