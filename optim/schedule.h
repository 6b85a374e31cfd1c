// The learning rate of every step as a pure function of the step's number (law 1).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace cairn::optim {

// Field names are the YAML keys of `optim.schedule:`.
struct ScheduleOptions {
  std::string name = "constant";  // constant | linear | cosine | wsd | inverse_sqrt
  int64_t warmup = 0;             // W: steps of linear warm-up; step n <= W has n / W
  std::optional<int64_t> decay;   // D steps. linear, cosine: the D after the warm-up (unset: all); wsd: the last D
                                  // (unset: a tenth of `total`)
  double final = 0.0;             // linear, cosine, wsd: the multiplier at the end of the decay and after it
};

// Multiplier of step n, n >= 1; T = total (steps after it keep its value). After the warm-up, with p = min(1, (n - W) /
// D):
//   constant 1 · linear 1 - (1 - final) p · cosine final + (1 - final) (1 + cos pi p) / 2 · inverse_sqrt sqrt(max(W, 1)
//   / n) wsd 1 while n <= T - D, then 1 - (1 - final) (n - (T - D)) / D
double schedule_multiplier(const ScheduleOptions& options, int64_t step, int64_t total);

// Throws std::invalid_argument naming the key: an unknown name, negative steps, warm-up and decay that do not fit into
// `total`.
void check_schedule(const ScheduleOptions& options, int64_t total);

std::vector<std::string> schedule_names();

}  // namespace cairn::optim
