// Regular expressions (PCRE2) over what a model wrote: whatever the text, a search ends, and after the same number of
// steps every time.
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace cairn::rl {

class Pattern {  // immutable, thread-safe
 public:
  enum class Outcome { found, none, gave_up };

  // PCRE2's syntax, UTF-8, `.` without line breaks unless (?s). Throws std::invalid_argument naming pattern and place.
  explicit Pattern(const std::string& regex);
  ~Pattern();
  Pattern(const Pattern&) = delete;
  Pattern& operator=(const Pattern&) = delete;

  int groups() const;
  // Looks for the first match. `group`: the text of the first group, of the whole match where there are none. Invalid
  // UTF-8 matches nothing and does no harm. gave_up: more than kSteps steps (items tried, characters passed over).
  Outcome search(std::string_view text, std::string* group = nullptr) const;
  // The same for the last match that does not overlap an earlier one.
  Outcome search_last(std::string_view text, std::string* group = nullptr) const;

  static constexpr int64_t kSteps = 20000000;

 private:
  struct Code;
  std::unique_ptr<Code> code_;
};

}  // namespace cairn::rl
