// Gradients of the lanes of one rank, joined by a binary tree as a binary counter does: log2(lanes) buffers beside the
// one that the backward pass adds into.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <vector>

namespace cairn::parallel {

// For each step: lane 0 .. lanes-1 in order; the backward pass of a lane adds into `gradient` (zero at its begin), then
//   next_lane()               after every lane but the last: joins, and zeroes the gradient
//   join(offset, length)      in the last lane, as parts of the gradient become final: afterwards that part is the sum
//   over all lanes finish()                  joins what has not been joined; the tree is empty again. The gradient is
//   the sum.
// ((0 + 1) + (2 + 3)) + ...: the number of lanes decides the order, not who computes them. Buffers are kept from step
// to step.
class LaneTree {
 public:
  // gradient: contiguous float32 [n]. lanes: a power of two, else std::invalid_argument.
  LaneTree(at::Tensor gradient, int lanes);
  void next_lane();
  void join(int64_t offset, int64_t length);
  void finish();
  int lane() const { return lane_; }
  int lanes() const { return lanes_; }
  int64_t buffers() const { return static_cast<int64_t>(held_ + pool_.size()); }  // beside the gradient

 private:
  at::Tensor take();
  at::Tensor gradient_;
  int lanes_, lane_ = 0;
  std::vector<at::Tensor> levels_;  // levels_[k]: sum of 2^k lanes, or undefined
  std::vector<at::Tensor> pool_;
  size_t held_ = 0;
  std::vector<std::pair<int64_t, int64_t>> joined_;  // parts of the gradient that are joined already
};

}  // namespace cairn::parallel
