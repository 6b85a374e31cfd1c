// Numbers as people and models write them, with their exact value.
//   18  -3  +4  1,000  1,234,567.50  .5  5.  $18  -$2.50  50%  1e3  3/4  1 1/2  \frac{3}{4}  1\frac12  1{,}000
// A minus right behind a digit, a letter or a closing bracket is an operator, no sign: "10-3" holds 10 and 3. Digits
// behind a letter (x2), a power (^2) or an index (_2), versions (1.2.3) and dates (1/2/2020) are no numbers.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "trainer/rl/rewards/rational.h"

namespace cairn::rl {

struct Number {
  Rational value;        // as written: of 50% it is 50
  bool percent = false;  // a percent sign or the word follows
};

// The text is one number, apart from blanks, LaTeX's spacing, $, *, quotes and a full stop around it.
std::optional<Number> whole_number(std::string_view text);
std::optional<Number> first_number(std::string_view text);
std::optional<Number> last_number(std::string_view text);
// The only one; none where there are several different ones.
std::optional<Number> only_number(std::string_view text);

// Equal as exact values. 50% equals 1/2, and 50 too: a percent sign that one side leaves out is no error.
bool same_number(const Number& a, const Number& b);

// One text a value: "1000", "1/2"; of 50% "1/2"... NOTE: 50% and 50 have different texts although same_number joins
// them.
std::string number_text(const Number& number);

}  // namespace cairn::rl
