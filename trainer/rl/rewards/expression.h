// Arithmetic expressions that a model wrote: parsed by hand and evaluated exactly. Nothing is executed.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/rl/rewards/rational.h"

namespace cairn::rl {

struct Expression {
  std::vector<Integer> numbers;   // as they stand, from the left
  std::optional<Rational> value;  // none: it divides by zero
};

// Whole numbers, + - * / and parentheses or brackets; also the signs of typesetting (×, ·, ÷, −, \times, \cdot, \div,
// \left, \right) and a sign before a part. None for anything else: other characters, decimals, powers, empty or
// unclosed parts, "2(3)", more than 1000 characters, parts nested deeper than 100.
std::optional<Expression> parse_expression(std::string_view text);

}  // namespace cairn::rl
