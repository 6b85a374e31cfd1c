// A state in memory against one on disk, tensor by tensor.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "trainer/state.h"

namespace cairn {

struct TensorDifference {
  std::string name;              // on disk: "model.layers.0...", "optimizer.<parameter>.exp_avg", "ema.<parameter>"
  int64_t index = 0;             // the first element that differs, in the row-major tensor
  int64_t elements = 0;          // that differ
  int64_t numel = 0;             // there are
  int64_t tensors = 0;           // that differ in the whole state
  std::string stored, replayed;  // the two values of that element
};

// The first tensor, in the order of the files, whose bytes are not those of the state; nothing where all are equal.
// Weights alone where the folder has no optimizer. Throws std::runtime_error where a file cannot be read at all.
std::optional<TensorDifference> first_difference(State& state, const std::filesystem::path& folder);

}  // namespace cairn
