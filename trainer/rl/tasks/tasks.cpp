#include <fmt/format.h>
#include <xxhash.h>

#include <map>
#include <stdexcept>

#include "trainer/data/permutation.h"
#include "trainer/rl/tasks/kinds.h"
#include "trainer/rl/tasks/task.h"

namespace cairn::rl {
namespace {
using Maker = std::unique_ptr<Task> (*)(const config::TaskOptions&);

const std::map<std::string, Maker> kTasks = {
    {"arithmetic", make_arithmetic}, {"countdown", make_countdown}, {"sorting", make_sorting},
    {"recall", make_recall},         {"data", make_data_task},
};
constexpr uint64_t kContentSeed = 0x7461736b;  // recorded runs depend on it
}  // namespace

std::unique_ptr<Task> make_task(const config::TaskOptions& options) {
  const auto maker = kTasks.find(options.name);
  if (maker == kTasks.end()) throw std::invalid_argument(fmt::format("task.name: '{}' is no task", options.name));
  return maker->second(options);
}

int64_t drawn_index(const Task& task, Side side, uint64_t seed, int64_t draw) {
  const auto size = task.size(side);
  if (!size) return draw;
  if (*size == 0) throw std::runtime_error("task: there is no problem to draw");
  return data::Permutation(seed, "task", draw / *size, *size)(draw % *size);
}

uint64_t content_hash(std::string_view content) {
  return XXH3_64bits_withSeed(content.data(), content.size(), kContentSeed);
}

Side side_of(uint64_t content_hash, double held_out) {
  return static_cast<double>(content_hash >> 11) * 0x1.0p-53 < held_out ? Side::evaluation : Side::train;
}

}  // namespace cairn::rl
