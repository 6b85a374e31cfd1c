#include <fmt/format.h>

#include <algorithm>

#include "trainer/rl/tasks/generated.h"

namespace cairn::rl {
namespace {

struct Level {
  int64_t numbers, largest;
};
constexpr Level kTable[kLevels] = {{3, 9}, {4, 20}, {6, 99}, {8, 99}, {12, 999}, {16, 999}, {24, 9999}, {32, 9999}};

class Sorting : public GeneratedTask {
 public:
  explicit Sorting(const config::TaskOptions& options)
      : GeneratedTask(options, "Sort in ascending order: {list}\nGive the sorted numbers after ####.\n") {}

 private:
  Drawn draw(Draws& draws, int level) const override {
    const auto& row = kTable[level - 1];
    std::vector<int64_t> numbers;
    for (int64_t i = 0; i < options_.numbers.value_or(row.numbers); ++i)
      numbers.push_back(draws.between(0, options_.largest.value_or(row.largest)));
    const std::string list = fmt::format("{}", fmt::join(numbers, " "));
    auto sorted = numbers;
    std::sort(sorted.begin(), sorted.end());
    const std::string answer = fmt::format("{}", fmt::join(sorted, " "));
    // By the sorted numbers: another order of the same ones asks for the same answer.
    return {answer, answer, {{"question", fmt::format("Sort {}.", list)}, {"list", list}, {"numbers", numbers}}};
  }
};

}  // namespace

std::unique_ptr<Task> make_sorting(const config::TaskOptions& options) { return std::make_unique<Sorting>(options); }

}  // namespace cairn::rl
