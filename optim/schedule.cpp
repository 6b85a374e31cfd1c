#include "optim/schedule.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace cairn::optim {
namespace {

// After the warm-up: n, T as doubles, W, D resolved.
struct Place {
  double n, total, warmup, decay, final;
  double fraction() const { return decay > 0 ? std::min(1.0, (n - warmup) / decay) : 1.0; }
};

struct Row {
  const char* name;
  double (*multiplier)(const Place&);
  int64_t (*decay)(const ScheduleOptions&, int64_t total);  // where none is given
};

int64_t none(const ScheduleOptions&, int64_t) { return 0; }
int64_t the_rest(const ScheduleOptions& o, int64_t total) { return total - o.warmup; }
int64_t a_tenth(const ScheduleOptions&, int64_t total) { return (total + 9) / 10; }

const Row kTable[] = {
    {"constant", [](const Place&) { return 1.0; }, none},
    {"linear", [](const Place& p) { return 1 - (1 - p.final) * p.fraction(); }, the_rest},
    {"cosine",
     [](const Place& p) { return p.final + (1 - p.final) * 0.5 * (1 + std::cos(std::numbers::pi * p.fraction())); },
     the_rest},
    {"wsd",
     [](const Place& p) {
       const double into = p.n - (p.total - p.decay);
       return into <= 0 ? 1.0 : 1 - (1 - p.final) * into / p.decay;
     },
     a_tenth},
    {"inverse_sqrt", [](const Place& p) { return std::sqrt(std::max(p.warmup, 1.0) / p.n); }, none},
};

const Row& row(const std::string& name) {
  for (const Row& row : kTable)
    if (name == row.name) return row;
  throw std::invalid_argument(fmt::format("optim.schedule.name: unknown schedule '{}' (there are {})", name,
                                          fmt::join(schedule_names(), ", ")));
}

}  // namespace

std::vector<std::string> schedule_names() {
  std::vector<std::string> names;
  for (const Row& row : kTable) names.emplace_back(row.name);
  return names;
}

void check_schedule(const ScheduleOptions& options, int64_t total) {
  const Row& found = row(options.name);
  if (options.warmup < 0)
    throw std::invalid_argument(fmt::format("optim.schedule.warmup: {} is negative", options.warmup));
  if (options.decay && *options.decay < 0)
    throw std::invalid_argument(fmt::format("optim.schedule.decay: {} is negative", *options.decay));
  if (!(options.final >= 0 && options.final <= 1))
    throw std::invalid_argument(fmt::format("optim.schedule.final: {} is not in [0, 1]", options.final));
  if (options.warmup > total)
    throw std::invalid_argument(
        fmt::format("optim.schedule.warmup: {} steps do not fit into the run's {}", options.warmup, total));
  const int64_t decay = options.decay.value_or(found.decay(options, total));
  if (options.warmup + decay > total)
    throw std::invalid_argument(
        fmt::format("optim.schedule: warm-up of {} and decay of {} steps do not fit into the run's {}; shorten one",
                    options.warmup, decay, total));
}

double schedule_multiplier(const ScheduleOptions& options, int64_t step, int64_t total) {
  const Row& found = row(options.name);
  step = std::min(step, total);
  if (step <= options.warmup) return static_cast<double>(step) / static_cast<double>(options.warmup);
  const int64_t decay = options.decay.value_or(found.decay(options, total));
  return found.multiplier({static_cast<double>(step), static_cast<double>(total), static_cast<double>(options.warmup),
                           static_cast<double>(decay), options.final});
}

}  // namespace cairn::optim
