// What one tensor's weights are like, and how two tensors differ. Sums are in double, block by block in order: the same
// for any number of threads.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "checkpoints/tensor.h"

namespace cairn::checkpoints {

struct WeightStatistics {
  int64_t count = 0;
  double sum_squares = 0;
  double norm = 0;  // Frobenius: sqrt(sum w^2)
  double rms = 0;   // sqrt(mean w^2)
  double mean = 0;
  double deviation = 0;  // sqrt(mean (w - mean)^2)
  double max_abs = 0;
  double max_over_rms = 0;    // max |w| / rms
  double kurtosis = 0;        // mean (w - mean)^4 / deviation^4: 3 for a normal distribution; nan where all are equal
  double beyond_6sigma = 0;   // share with |w - mean| > 6 deviations
  std::vector<double> below;  // share with |w| <= threshold, one a threshold
};

/// Throws std::invalid_argument where the tensor is not floating. An empty tensor gives zeros.
WeightStatistics weight_statistics(const TensorView& tensor, std::span<const double> thresholds = {});

/// Of a pair (a, b) of equal shape; sums, so that those of several tensors add up.
struct PairStatistics {
  int64_t count = 0, differing = 0;  // elements; those whose values differ (two NaN are equal)
  double squares_a = 0, squares_b = 0, dot = 0, squares_difference = 0;
  double max_abs = 0;  // of b - a; nan where any difference is

  double norm_a() const;
  double norm_b() const;
  double norm_difference() const;  // |b - a|
  double cosine() const;           // of a and b; nan where either is zero
  double relative() const;         // |b - a| / |a|: 0 where they are equal, inf where a alone is zero
  PairStatistics& operator+=(const PairStatistics& other);
};

/// `as`: both are rounded to this type first (a float32 state beside one that is kept in bfloat16). Throws
/// std::invalid_argument where shapes differ or a type is not floating.
PairStatistics pair_statistics(const TensorView& a, const TensorView& b, std::optional<DType> as = {});

/// Cosine of the angle between b - a and c - b: whether two successive changes point the same way. Sums as above.
struct DirectionStatistics {
  double squares_first = 0, squares_second = 0, dot = 0;
  double cosine() const;  // nan where either change is zero
  DirectionStatistics& operator+=(const DirectionStatistics& other);
};
DirectionStatistics direction_statistics(const TensorView& a, const TensorView& b, const TensorView& c,
                                         std::optional<DType> as = {});

}  // namespace cairn::checkpoints
