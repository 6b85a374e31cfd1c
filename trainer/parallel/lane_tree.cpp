#include "trainer/parallel/lane_tree.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <stdexcept>

namespace cairn::parallel {

LaneTree::LaneTree(at::Tensor gradient, int lanes) : gradient_(std::move(gradient)), lanes_(lanes) {
  if (lanes < 1 || !std::has_single_bit(static_cast<unsigned>(lanes)))
    throw std::invalid_argument(fmt::format("train.lanes: {} lanes on a rank is not a power of two", lanes));
  levels_.resize(std::bit_width(static_cast<unsigned>(lanes)));
}

void LaneTree::next_lane() {
  const at::NoGradGuard no_grad;
  if (lane_ + 1 >= lanes_)
    throw std::logic_error(fmt::format("LaneTree: lane {} is the last of {}; finish() ends the step", lane_, lanes_));
  // A binary counter: the levels below the first empty one are full, and carry.
  size_t level = 0;
  if (!levels_[0].defined()) {
    at::Tensor buffer;
    if (pool_.empty()) {
      buffer = at::empty_like(gradient_);
    } else {
      buffer = pool_.back();
      pool_.pop_back();
    }
    levels_[0] = buffer.copy_(gradient_);
  } else {
    at::Tensor sum = levels_[0].add_(gradient_);
    levels_[0] = at::Tensor();
    for (level = 1; levels_[level].defined(); ++level) {
      levels_[level].add_(sum);
      pool_.push_back(sum);
      sum = levels_[level];
      levels_[level] = at::Tensor();
    }
    levels_[level] = sum;
  }
  gradient_.zero_();
  ++lane_;
}

void LaneTree::join(int64_t offset, int64_t length) {
  const at::NoGradGuard no_grad;
  if (lane_ + 1 != lanes_)
    throw std::logic_error(
        fmt::format("LaneTree: join() in lane {} of {}; only the last lane's sums are final", lane_, lanes_));
  if (lanes_ == 1 || length == 0) return;
  at::Tensor part = gradient_.narrow(0, offset, length);
  // In the last lane every level below the top is full.
  for (const at::Tensor& level : levels_)
    if (level.defined()) part.add_(level.narrow(0, offset, length));
  joined_.emplace_back(offset, length);
}

void LaneTree::finish() {
  if (lane_ + 1 != lanes_) throw std::logic_error(fmt::format("LaneTree: finish() in lane {} of {}", lane_, lanes_));
  if (lanes_ > 1) {
    std::sort(joined_.begin(), joined_.end());
    auto parts = std::move(joined_);
    parts.emplace_back(gradient_.numel(), 0);
    int64_t done = 0;
    for (const auto& [offset, length] : parts) {
      if (offset < done) throw std::logic_error(fmt::format("LaneTree: elements from {} on were joined twice", offset));
      join(done, offset - done);
      done = offset + length;
    }
  }
  reset();
}

void LaneTree::reset() {
  for (auto& level : levels_)
    if (level.defined()) {
      pool_.push_back(level);
      level = at::Tensor();
    }
  joined_.clear();
  lane_ = 0;
}

int64_t LaneTree::buffers() const {
  return static_cast<int64_t>(pool_.size()) +
         std::count_if(levels_.begin(), levels_.end(), [](const at::Tensor& level) { return level.defined(); });
}

}  // namespace cairn::parallel
