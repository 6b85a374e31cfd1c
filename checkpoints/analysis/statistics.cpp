#include "checkpoints/analysis/statistics.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <limits>
#include <stdexcept>

#include "checkpoints/analysis/elements.h"

namespace cairn::checkpoints {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

double angle(double dot, double squares_a, double squares_b) {
  const double product = std::sqrt(squares_a) * std::sqrt(squares_b);
  return product > 0 ? dot / product : kNaN;
}

void check_shapes(const TensorView& a, const TensorView& b) {
  if (a.shape != b.shape)
    throw std::invalid_argument(fmt::format("tensor '{}' has shape [{}], and [{}] in the other state", a.name,
                                            fmt::join(a.shape, ", "), fmt::join(b.shape, ", ")));
}

// The larger magnitude; nan once there was one.
void raise(double& most, double value) {
  value = std::abs(value);
  if (value > most || std::isnan(value)) most = value;
}

}  // namespace

WeightStatistics weight_statistics(const TensorView& tensor, std::span<const double> thresholds) {
  WeightStatistics s;
  s.count = tensor.numel();
  s.below.assign(thresholds.size(), 0.0);
  if (s.count == 0) return s;
  const double n = static_cast<double>(s.count);
  double sum = 0;
  std::vector<int64_t> below(thresholds.size(), 0);
  for_each_block(tensor, [&](int64_t, std::span<const double> block) {
    double block_sum = 0, block_squares = 0;
    for (const double x : block) {
      block_sum += x;
      block_squares += x * x;
      raise(s.max_abs, x);
    }
    sum += block_sum;
    s.sum_squares += block_squares;
    for (size_t t = 0; t < thresholds.size(); ++t)
      for (const double x : block) below[t] += std::abs(x) <= thresholds[t];
  });
  s.norm = std::sqrt(s.sum_squares);
  s.rms = std::sqrt(s.sum_squares / n);
  s.mean = sum / n;
  s.max_over_rms = s.rms > 0 ? s.max_abs / s.rms : s.rms;
  for (size_t t = 0; t < thresholds.size(); ++t) s.below[t] = below[t] / n;

  double second = 0, fourth = 0;
  for_each_block(tensor, [&](int64_t, std::span<const double> block) {
    double block_second = 0, block_fourth = 0;
    for (const double x : block) {
      const double square = (x - s.mean) * (x - s.mean);
      block_second += square;
      block_fourth += square * square;
    }
    second += block_second;
    fourth += block_fourth;
  });
  s.deviation = std::sqrt(second / n);
  s.kurtosis = second > 0 ? fourth * n / (second * second) : kNaN;
  int64_t beyond = 0;
  if (s.max_abs + std::abs(s.mean) > 6 * s.deviation) {
    for_each_block(tensor, [&](int64_t, std::span<const double> block) {
      for (const double x : block) beyond += std::abs(x - s.mean) > 6 * s.deviation;
    });
  }
  s.beyond_6sigma = beyond / n;
  return s;
}

double PairStatistics::norm_a() const { return std::sqrt(squares_a); }
double PairStatistics::norm_b() const { return std::sqrt(squares_b); }
double PairStatistics::norm_difference() const { return std::sqrt(squares_difference); }
double PairStatistics::cosine() const { return angle(dot, squares_a, squares_b); }
double PairStatistics::relative() const {
  if (squares_difference == 0) return 0;
  return norm_difference() / norm_a();
}

PairStatistics& PairStatistics::operator+=(const PairStatistics& other) {
  count += other.count;
  differing += other.differing;
  squares_a += other.squares_a;
  squares_b += other.squares_b;
  dot += other.dot;
  squares_difference += other.squares_difference;
  raise(max_abs, other.max_abs);
  return *this;
}

PairStatistics pair_statistics(const TensorView& a, const TensorView& b, std::optional<DType> as) {
  check_shapes(a, b);
  PairStatistics s;
  s.count = a.numel();
  std::array<double, kElementBlock> left, right;
  for (int64_t first = 0; first < s.count; first += kElementBlock) {
    const size_t length = std::min(kElementBlock, s.count - first);
    const std::span<double> x(left.data(), length), y(right.data(), length);
    read_elements(a, first, x);
    read_elements(b, first, y);
    if (as) {
      round_elements(x, *as);
      round_elements(y, *as);
    }
    PairStatistics block;
    for (size_t i = 0; i < length; ++i) {
      block.squares_a += x[i] * x[i];
      block.squares_b += y[i] * y[i];
      block.dot += x[i] * y[i];
      // Equal infinities differ by nothing; x - x would be nan.
      const bool same = x[i] == y[i] || (std::isnan(x[i]) && std::isnan(y[i]));
      const double difference = same ? 0 : y[i] - x[i];
      block.differing += !same;
      block.squares_difference += difference * difference;
      raise(block.max_abs, difference);
    }
    s += block;
  }
  return s;
}

double DirectionStatistics::cosine() const { return angle(dot, squares_first, squares_second); }

DirectionStatistics& DirectionStatistics::operator+=(const DirectionStatistics& other) {
  squares_first += other.squares_first;
  squares_second += other.squares_second;
  dot += other.dot;
  return *this;
}

DirectionStatistics direction_statistics(const TensorView& a, const TensorView& b, const TensorView& c,
                                         std::optional<DType> as) {
  check_shapes(a, b);
  check_shapes(b, c);
  DirectionStatistics s;
  std::array<std::array<double, kElementBlock>, 3> buffers;
  const std::array<const TensorView*, 3> views = {&a, &b, &c};
  const int64_t count = a.numel();
  for (int64_t first = 0; first < count; first += kElementBlock) {
    const size_t length = std::min(kElementBlock, count - first);
    for (size_t k = 0; k < 3; ++k) {
      const std::span<double> values(buffers[k].data(), length);
      read_elements(*views[k], first, values);
      if (as) round_elements(values, *as);
    }
    DirectionStatistics block;
    for (size_t i = 0; i < length; ++i) {
      const double one = buffers[1][i] - buffers[0][i], two = buffers[2][i] - buffers[1][i];
      block.squares_first += one * one;
      block.squares_second += two * two;
      block.dot += one * two;
    }
    s += block;
  }
  return s;
}

}  // namespace cairn::checkpoints
