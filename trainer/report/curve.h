// One number along a run, as a page can hold it: all of it where it is short, otherwise buckets of `per` values in a
// row, each with its lowest, its mean and its highest value, so that no spike gets lost.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

namespace cairn::report {

inline constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();
inline constexpr size_t kMostPoints = 1500;  // of a curve on the page

struct Curve {
  std::string name;
  int64_t per = 1;                                                                  // values behind a point
  int64_t values = 0;                                                               // finite ones in all
  int64_t missing = 0;                                                              // NaN or infinite
  double first = kMissing, last = kMissing, lowest = kMissing, highest = kMissing;  // of all values
  std::vector<int64_t> step, tokens;    // of a point: those of its last value; tokens empty where not known
  std::vector<double> mean, low, high;  // low and high only where per > 1; NaN where a bucket has no value
};

// `steps`, `tokens` (or none) and `values` are of equal length, ascending by step. At most `most` points come out.
Curve make_curve(std::string name, std::span<const int64_t> steps, std::span<const int64_t> tokens,
                 std::span<const double> values, size_t most = kMostPoints);

nlohmann::ordered_json to_json(const Curve& curve);

// To 7 significant digits: what a page needs, in half the bytes. NaN and infinities become null in JSON.
double shorten(double value);

// Every k-th of n places, k the least with at most `most` of them (beside the last), the first and the last included;
// k goes to `every` where given.
std::vector<size_t> thin(size_t n, size_t most, size_t* every = nullptr);

}  // namespace cairn::report
