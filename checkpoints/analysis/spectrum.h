// What the singular values of a matrix say about it: formulas of numbers alone; who computes them is the caller's
// business.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace cairn::checkpoints {

/// exp of the entropy of sigma / sum(sigma) (Roy and Vetterli 2007): the number of directions that count. 0 for a zero
/// matrix.
double effective_rank(std::span<const double> sigma);

/// sum(sigma^2) / max(sigma)^2. 0 for a zero matrix.
double stable_rank(std::span<const double> sigma);

/// p(x) ~ x^-alpha for x >= xmin.
struct PowerLaw {
  double alpha = 0;  // nan where fewer than two distinct values are above 0
  double xmin = 0;
  double distance = 0;  // Kolmogorov-Smirnov, of the tail
  int64_t tail = 0;     // values >= xmin
};

/// Clauset, Shalizi and Newman 2009, continuous case: alpha = 1 + n / sum ln(x / xmin) over the tail; xmin is the one
/// of the values (the largest left aside) that brings the tail nearest to its law, as in the authors' plfit. Values
/// that are not above 0 are left out. O(n^2).
PowerLaw fit_power_law(std::vector<double> x);

}  // namespace cairn::checkpoints
