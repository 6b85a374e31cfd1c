// When a checkpoint is due and which ones are kept: pure functions of numbers.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace cairn::checkpoints {

enum class Spacing {
  none,
  doubling,      // 0 1 2 4 8 16 ... (what `log_spaced: true` means; the steps of Pythia)
  one_two_five,  // 0 1 2 5 10 20 50 100 ...
};

/// The rules add up: a step is due where any of them says so.
struct Schedule {
  int64_t every = 0;  // step > 0 divisible by it; 0: never
  Spacing log_spaced = Spacing::none;
  std::vector<int64_t> at;  // these steps
  bool at_end = true;       // the last step

  /// `last_step`: number of the run's last step, negative where it is not known.
  bool due(int64_t step, int64_t last_step = -1) const;
};

/// The rules add up: a checkpoint stays where any of them keeps it. The newest always stays.
struct Retention {
  bool all = true;          // keep everything; the rest is not looked at
  int64_t last = 0;         // the newest N
  int64_t every = 0;        // steps divisible by it (0 and the initialisation included)
  std::vector<int64_t> at;  // these steps
  std::string metric;       // of this metric of the checkpoint ...
  bool lower_is_better = true;
  int64_t best = 0;  // ... the best N

  /// The steps to delete, oldest first. `steps` is sorted; `value(step)` gives the metric where the step has one (nan
  /// counts as none; of equal values the earlier step is better).
  std::vector<int64_t> to_delete(const std::vector<int64_t>& steps,
                                 const std::function<std::optional<double>(int64_t)>& value = {}) const;
};

}  // namespace cairn::checkpoints
