// Finding the matches of a regular expression of a tokenizer in valid UTF-8: the well-known patterns by hand-written
// scanners, any other by PCRE2 with its JIT, its syntax brought over from Oniguruma's.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace cairn::data {

struct Match {
  size_t begin, end;
};

class Pattern {  // immutable, thread-safe
 public:
  virtual ~Pattern() = default;
  // The first match that starts at FROM or later; false where there is none. Scanners never match emptily; a PCRE2
  // pattern may.
  virtual bool find(std::string_view text, size_t from, Match& match) const = 0;
  // True where between a character that is no space and a space that another character but a space follows a match
  // always starts: there a long text can be cut without changing its matches.
  virtual bool cuts_before_single_space() const { return false; }
};

// A scanner written for exactly this pattern, or none.
std::unique_ptr<Pattern> known_pattern(const std::string& regex);

// `regex` in Oniguruma's syntax (as tokenizer.json has it). Throws std::runtime_error, naming what it cannot take over.
std::unique_ptr<Pattern> compile_pattern(const std::string& regex);

// Matches of the very string `literal`.
std::unique_ptr<Pattern> literal_pattern(const std::string& literal);

// PCRE2 even where a scanner exists: the scanners' oracle in the tests.
std::unique_ptr<Pattern> pcre2_pattern(const std::string& regex);

// The matches in TEXT one after the other, as Oniguruma's find_iter gives them: of the empty ones none right behind the
// match before, and none at all in an empty text.
class Matches {
 public:
  Matches(const Pattern& pattern, std::string_view text) : pattern_(pattern), text_(text) {}
  bool next(Match& match);

 private:
  const Pattern& pattern_;
  std::string_view text_;
  size_t from_ = 0;
  size_t previous_end_ = static_cast<size_t>(-1);
};

}  // namespace cairn::data
