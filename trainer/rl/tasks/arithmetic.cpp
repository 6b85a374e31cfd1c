#include <fmt/format.h>

#include <stdexcept>

#include "trainer/rl/tasks/generated.h"

namespace cairn::rl {
namespace {

struct Level {
  int64_t digits, operands;
  const char* operators;
};
constexpr Level kTable[kLevels] = {{1, 2, "+"}, {2, 2, "+-"},  {3, 2, "+-"},  {1, 3, "+-*"},
                                   {2, 2, "*"}, {2, 3, "+-*"}, {3, 3, "+-*"}, {4, 4, "+-*"}};

class Arithmetic : public GeneratedTask {
 public:
  explicit Arithmetic(const config::TaskOptions& options)
      : GeneratedTask(options, "What is {expression}? Give the result after ####.\n") {
    for (const int64_t level : options.levels) {
      const auto& row = kTable[level - 1];
      const std::string operators = options.operators.value_or(row.operators);
      const int64_t digits = options.digits.value_or(row.digits) * options.operands.value_or(row.operands);
      if (operators.find('*') != operators.npos && digits > 18)
        throw std::invalid_argument(
            fmt::format("task arithmetic: found products of up to {} digits, expected digits * operands of at most 18 "
                        "where operators has *",
                        digits));
    }
  }

 private:
  Drawn draw(Draws& draws, int level) const override {
    const auto& row = kTable[level - 1];
    const std::string operators = options_.operators.value_or(row.operators);
    const int64_t operands = options_.operands.value_or(row.operands);
    int64_t end = 1;
    for (int64_t i = 0; i < options_.digits.value_or(row.digits); ++i) end *= 10;
    int64_t sum = 0, term = draws.below(end);  // the terms before the last one, and that
    std::string text = std::to_string(term);
    for (int64_t i = 1; i < operands; ++i) {
      const char op = operators[static_cast<size_t>(draws.below(static_cast<int64_t>(operators.size())))];
      const int64_t number = draws.below(end);
      text += fmt::format(" {} {}", op, number);
      if (op == '*') {
        term *= number;
      } else {
        sum += term;
        term = op == '-' ? -number : number;
      }
    }
    return {text, std::to_string(sum + term), {{"question", fmt::format("What is {}?", text)}, {"expression", text}}};
  }
};

}  // namespace

std::unique_ptr<Task> make_arithmetic(const config::TaskOptions& options) {
  return std::make_unique<Arithmetic>(options);
}

}  // namespace cairn::rl
