// The numbers of a tensor, whatever type they are stored in, a block at a time: what every measure and merge reads.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <span>

#include "checkpoints/tensor.h"

namespace cairn::checkpoints {

/// F64, F32, F16 or BF16: the types of weights. What else a file holds (masks, counters) is no weight.
bool is_floating(DType dtype);

/// Elements [first, first + out.size()) of a floating tensor. Throws std::invalid_argument naming tensor and type where
/// it is none.
void read_elements(const TensorView& tensor, int64_t first, std::span<double> out);

/// The other way: `values` as `dtype`, tightly packed into `out`. Rounded to the nearest float32 first, then, for F16
/// and BF16, to the nearest of those, ties to even; F64 keeps all bits.
void write_elements(std::span<const double> values, DType dtype, void* out);

/// `values` as they would be read back after being written as `dtype`.
void round_elements(std::span<double> values, DType dtype);

inline constexpr int64_t kElementBlock = 4096;

/// action(first index, values) for every block of the tensor, in order.
template <class Action>
void for_each_block(const TensorView& tensor, Action&& action) {
  std::array<double, kElementBlock> buffer;
  const int64_t count = tensor.numel();
  for (int64_t first = 0; first < count; first += kElementBlock) {
    const std::span<double> block(buffer.data(), std::min(kElementBlock, count - first));
    read_elements(tensor, first, block);
    action(first, std::span<const double>(block));
  }
}

}  // namespace cairn::checkpoints
