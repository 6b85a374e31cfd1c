// The learning rate of every step as a pure function of the step's number (law 1).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace cairn::optim {

// Field names are the YAML keys of `optim.schedule:`.
struct ScheduleOptions {
  std::string name = "constant";  // constant | linear | cosine | wsd | inverse_sqrt
  int64_t warmup = 0;             // W: steps of linear warm-up; step n <= W has n / W
  int64_t decay = 0;              // wsd: D, the last steps, over which the multiplier falls linearly
  double final = 0.0;             // linear, cosine, wsd: the multiplier of the last step
};

// Multiplier of step n, 1 <= n; steps after `total` keep the last value. With T = total, p = (n - W) / (T - W) after
// the warm-up:
//   constant 1 · linear 1 - (1 - final) p · cosine final + (1 - final) (1 + cos pi p) / 2
//   wsd 1 until T - D, then 1 - (1 - final) (n - (T - D)) / D · inverse_sqrt sqrt(max(W, 1) / n)
double schedule_multiplier(const ScheduleOptions& options, int64_t step, int64_t total);

// Throws std::invalid_argument naming the key: an unknown name, negative steps, warm-up and decay that do not fit into
// `total`.
void check_schedule(const ScheduleOptions& options, int64_t total);

std::vector<std::string> schedule_names();

}  // namespace cairn::optim
