// The states that a run's trajectory holds: weights alone, step by step.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "trainer/analysis/states.h"

namespace cairn::analysis {

class TrajectoryStates {
 public:
  virtual ~TrajectoryStates() = default;
  virtual const std::vector<std::string>& names() const = 0;         // of the tensors, sorted
  virtual std::vector<int64_t> steps() const = 0;                    // ascending
  virtual checkpoints::DType dtype() const = 0;                      // F32 or BF16
  virtual std::unique_ptr<Weights> weights(int64_t step) const = 0;  // any thread
  virtual std::string key(int64_t step) const = 0;  // of the weights, as the journal or the segment has it
};

// RUN/trajectory; null where there is none. Throws std::runtime_error where it is damaged.
std::shared_ptr<const TrajectoryStates> open_trajectory(const std::filesystem::path& run);

}  // namespace cairn::analysis
