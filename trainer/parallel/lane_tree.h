// Gradients of the lanes of one rank, joined by a binary tree as a binary counter does: log2(lanes) buffers beside the
// one that the backward pass adds into.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace cairn::parallel {

// For each step, lane 0 .. lanes-1 in order; the backward pass of a lane adds into `gradient` (zero at its begin), then
//   next_lane()               after every lane but the last: joins what can be joined, and zeroes the gradient
//   join(offset, length)      in the last lane, as parts of the gradient become final: that part is the sum over all
//                             lanes afterwards; each element at most once
//   finish()                  joins what has not been joined; the gradient is the sum over all lanes
// ((0 + 1) + (2 + 3)) + ...: the number of lanes decides the order, not who computes them. Buffers are kept from step
// to step. After finish() the gradient is not cleared.
class LaneTree {
 public:
  // gradient: contiguous float32 [n]. lanes: a power of two, else std::invalid_argument.
  LaneTree(at::Tensor gradient, int lanes);
  void next_lane();
  void join(int64_t offset, int64_t length);
  void finish();
  void reset();  // forgets a step that was given up; the gradient is left as it is
  int lane() const { return lane_; }
  int lanes() const { return lanes_; }
  int64_t buffers() const;  // gradient-sized ones held beside the gradient: log2(lanes) at most

 private:
  at::Tensor gradient_;
  int lanes_, lane_ = 0;
  std::vector<at::Tensor> levels_;                   // levels_[k]: sum of 2^k lanes, or undefined
  std::vector<at::Tensor> pool_;                     // free buffers
  std::vector<std::pair<int64_t, int64_t>> joined_;  // parts of the gradient that are joined already
};

}  // namespace cairn::parallel
