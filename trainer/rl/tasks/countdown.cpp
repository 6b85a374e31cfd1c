#include <fmt/format.h>

#include <algorithm>

#include "trainer/rl/tasks/generated.h"

namespace cairn::rl {
namespace {

struct Level {
  int64_t numbers, largest;
};
constexpr Level kTable[kLevels] = {{2, 10}, {3, 10}, {3, 50}, {4, 50}, {4, 100}, {5, 100}, {6, 100}, {7, 100}};
constexpr int64_t kLargestTarget = 9999;  // keeps steps far from overflow too

struct Part {
  int64_t value;
  std::string text;
  bool alone;  // a number, no expression
};

std::string wrapped(const Part& part) { return part.alone ? part.text : "(" + part.text + ")"; }

// Joins two parts by an operator that leaves a positive whole number, drawn among those that do.
Part join(const Part& a, const Part& b, Draws& draws) {
  const Part& large = a.value >= b.value ? a : b;
  const Part& small = a.value >= b.value ? b : a;
  std::string operators = "+";
  if (large.value > small.value) operators += '-';
  if (large.value * small.value <= kLargestTarget) operators += '*';
  if (small.value > 1 && large.value % small.value == 0) operators += '/';
  const char op = operators[static_cast<size_t>(draws.below(static_cast<int64_t>(operators.size())))];
  const int64_t value = op == '+'   ? large.value + small.value
                        : op == '-' ? large.value - small.value
                        : op == '*' ? large.value * small.value
                                    : large.value / small.value;
  return {value, fmt::format("{} {} {}", wrapped(large), op, wrapped(small)), false};
}

class Countdown : public GeneratedTask {
 public:
  explicit Countdown(const config::TaskOptions& options)
      : GeneratedTask(options,
                      "Make {target} from the numbers {list}, each used once, with + - * / and parentheses. Put the "
                      "expression in <answer> </answer>.\n") {}

 private:
  Drawn draw(Draws& draws, int level) const override {
    const auto& row = kTable[level - 1];
    const int64_t count = options_.numbers.value_or(row.numbers);
    std::vector<Part> parts;
    std::vector<int64_t> numbers;
    for (int64_t i = 0; i < count; ++i) {
      numbers.push_back(draws.between(1, options_.largest.value_or(row.largest)));
      parts.push_back({numbers.back(), std::to_string(numbers.back()), true});
    }
    while (parts.size() > 1) {
      draws.shuffle(parts);
      const Part joined = join(parts[parts.size() - 1], parts[parts.size() - 2], draws);
      parts.resize(parts.size() - 2);
      parts.push_back(joined);
    }
    draws.shuffle(numbers);
    const std::string list = fmt::format("{}", fmt::join(numbers, ", "));
    auto sorted = numbers;
    std::sort(sorted.begin(), sorted.end());
    const int64_t target = parts[0].value;
    return {fmt::format("{}={}", fmt::join(sorted, ","), target),
            parts[0].text,
            {{"question", fmt::format("Make {} from {}.", target, list)},
             {"list", list},
             {"numbers", numbers},
             {"target", target}}};
  }
};

}  // namespace

std::unique_ptr<Task> make_countdown(const config::TaskOptions& options) {
  return std::make_unique<Countdown>(options);
}

}  // namespace cairn::rl
