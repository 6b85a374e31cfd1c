// Which source the N-th draw of a stage comes from: a fixed, random-access sequence that follows the weights closely.
#pragma once

#include <cstdint>
#include <vector>

namespace cairn::data {

// After any number N of draws every source has been drawn within one of N * weight times: the sequence is that of the
// chairman assignment problem (Tijdeman 1980, bound 1 - 1/(2k-2) for k sources). Weights are rationals with a common
// denominator P, so the sequence has the period P and is held as a table.
// NOTE: P is the smallest denominator up to 4096 that gives the weights exactly; else weights are rounded to 1/2^18.
class Mixture {
 public:
  // Positive weights; they are divided by their sum. Throws std::invalid_argument otherwise.
  explicit Mixture(const std::vector<double>& weights);

  struct Place {
    int32_t source;
    int64_t index;  // draws of this source before this one
  };
  Place at(int64_t draw) const;                          // O(1)
  int64_t draw_of(int32_t source, int64_t index) const;  // inverse of at
  int64_t count(int32_t source, int64_t draws) const;    // draws of the source among the first `draws`; O(log P)
  double weight(int32_t source) const;                   // as used, after rounding

 private:
  int64_t period_ = 1;
  std::vector<int64_t> quota_;                   // [sources]: draws in a period
  std::vector<int32_t> source_;                  // [period]
  std::vector<int32_t> rank_;                    // [period]: earlier draws of the same source in the period
  std::vector<std::vector<int32_t>> positions_;  // [sources][quota]
};

}  // namespace cairn::data
