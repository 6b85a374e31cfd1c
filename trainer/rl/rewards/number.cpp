#include "trainer/rl/rewards/number.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <vector>

namespace cairn::rl {
namespace {

constexpr size_t kLongest = 2000;  // digits: beyond it a run of digits is no number
constexpr int kLargestExponent = 400;

bool digit(char c) { return c >= '0' && c <= '9'; }
bool alpha(char c) { return std::isalpha(static_cast<unsigned char>(c)); }
Number percent_of(const Number& n) { return {n.value * Rational{1, 100}, false}; }

struct Rewrite {
  std::string_view from, to;
};
// What LaTeX and Unicode write differently; spaces that only set type go, so that 1\,000 is 1000.
constexpr std::array<Rewrite, 19> kRewrites = {{{"{,}", ","},
                                                {"\\$", "$"},
                                                {"\\%", "%"},
                                                {"\\!", ""},
                                                {"\\,", ""},
                                                {"\\;", ""},
                                                {"\\:", ""},
                                                {"\\ ", " "},
                                                {"~", " "},
                                                {"\\left", ""},
                                                {"\\right", ""},
                                                {"\\dfrac", "\\frac"},
                                                {"\\tfrac", "\\frac"},
                                                {"\\cfrac", "\\frac"},
                                                {"\xE2\x88\x92", "-"},  // minus
                                                {"\xC2\xA0", " "},      // no-break space
                                                {"\xE2\x80\xAF", " "},  // narrow no-break space
                                                {"\xE2\x82\xAC", "$"},  // euro
                                                {"\xC2\xA3", "$"}}};    // pound

std::string clean(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const auto rest = text.substr(i);
    const Rewrite* found = nullptr;
    for (const auto& rewrite : kRewrites)
      if (rest.starts_with(rewrite.from)) found = &rewrite;
    if (found) {
      out += found->to;
      i += found->from.size();
    } else {
      out += text[i++];
    }
  }
  return out;
}

struct Token {
  std::optional<Number> number;  // none: something with digits that is no number
  size_t end;
};

// Reads tokens of a cleaned text.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  // The next token that begins at `at` or later; false at the end.
  bool next(size_t& at, Token& token) const {
    for (; at < text_.size(); ++at) {
      const char c = text_[at];
      const bool begins = digit(c) || (c == '.' && digit(peek(at + 1))) || text_.substr(at).starts_with("\\frac") ||
                          ((c == '$' || c == '-' || c == '+') && starts_after_marks(at));
      if (!begins) continue;
      if (belongs_to_word(at)) {
        at = skip_run(at) - 1;
        continue;
      }
      token = read(at);
      if (token.end > at) return true;
    }
    return false;
  }

  // A token at `at`, marks and sign included.
  Token read(size_t at) const {
    bool negative = false;
    size_t i = at;
    for (int marks = 0; marks < 2; ++marks) {
      if (peek(i) == '$') ++i;
      if (peek(i) == '-' || peek(i) == '+') {
        if (marks > 0) break;
        negative = peek(i) == '-';
        ++i;
      }
    }
    Token token = magnitude(i);
    if (token.number && negative) token.number->value = -token.number->value;
    if (token.number) token.number->percent = percent(token.end);
    return token;
  }

 private:
  char peek(size_t i) const { return i < text_.size() ? text_[i] : '\0'; }

  // A sign or a currency mark that begins a number: `-3`, `$5`, `-$5`, `$-5`, not the minus of `10-3`.
  bool starts_after_marks(size_t at) const {
    size_t i = at;
    bool sign = false;
    for (; peek(i) == '$' || ((peek(i) == '-' || peek(i) == '+') && !sign); ++i) {
      if (peek(i) == '$' && i > at && peek(i - 1) == '$') return false;
      sign = sign || peek(i) != '$';
    }
    if (!digit(peek(i)) && !(peek(i) == '.' && digit(peek(i + 1))) && !text_.substr(i).starts_with("\\frac"))
      return false;
    if (text_[at] == '$' || at == 0) return true;
    const char before = text_[at - 1];
    return !(std::isalnum(static_cast<unsigned char>(before)) || before == ')' || before == ']' || before == '}' ||
             before == '%' || before == '.' || before == '-' || before == '+');
  }

  // x2, H_2, 10^2; but not \cdot5, whose letters are a command.
  bool belongs_to_word(size_t at) const {
    if (at == 0) return false;
    const char before = text_[at - 1];
    if (before == '^' || before == '_') return true;
    if (before == '{' && at > 1 && (text_[at - 2] == '^' || text_[at - 2] == '_')) return true;
    if (!alpha(before)) return false;
    size_t i = at;
    while (i > 0 && alpha(text_[i - 1])) --i;
    return i == 0 || text_[i - 1] != '\\';
  }

  size_t skip_run(size_t at) const {
    size_t i = at + 1;
    while (i < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[i])) || text_[i] == '_')) ++i;
    return i;
  }

  size_t digits_end(size_t i) const {
    while (digit(peek(i))) ++i;
    return i;
  }

  // 1,234,567: the end of the groups, or of the plain digits.
  size_t grouped_end(size_t begin) const {
    size_t end = digits_end(begin);
    if (end - begin > 3 || text_[begin] == '0') return end;
    while (peek(end) == ',' && digits_end(end + 1) == end + 4) end += 4;
    return end;
  }

  static Rational decimal(std::string_view whole, std::string_view fraction) {
    std::string digits;
    for (const char c : whole)
      if (c != ',') digits += c;
    while (fraction.ends_with('0')) fraction.remove_suffix(1);
    digits += fraction;
    return {Integer::from_digits(digits), Integer::power_of_ten(static_cast<int>(fraction.size()))};
  }

  // A decimal number without sign.
  Token plain(size_t begin) const {
    size_t end = digit(peek(begin)) ? grouped_end(begin) : begin;
    const size_t whole = end;
    std::string_view fraction;
    if (peek(end) == '.' && digit(peek(end + 1))) {
      const size_t stop = digits_end(end + 1);
      fraction = text_.substr(end + 1, stop - end - 1);
      end = stop;
    }
    if (whole == begin && fraction.empty()) return {std::nullopt, begin};
    if (peek(end) == '.' && digit(peek(end + 1))) {  // 1.2.3
      while (digit(peek(end)) || (peek(end) == '.' && digit(peek(end + 1)))) ++end;
      return {std::nullopt, end};
    }
    if (end - begin > kLongest) return {std::nullopt, end};
    Rational value = decimal(text_.substr(begin, whole - begin), fraction);
    if (peek(end) == 'e' || peek(end) == 'E') {
      const bool minus = peek(end + 1) == '-';
      const size_t first = end + 1 + (minus || peek(end + 1) == '+' ? 1 : 0);
      const size_t stop = digits_end(first);
      if (stop > first && !alpha(peek(stop))) {
        const int exponent =
            stop - first > 4 ? kLargestExponent + 1 : std::stoi(std::string(text_.substr(first, stop - first)));
        if (exponent > kLargestExponent) return {std::nullopt, stop};
        const Rational power{Integer::power_of_ten(exponent), 1};
        value = minus ? value / power : value * power;
        end = stop;
      }
    }
    return {Number{value, false}, end};
  }

  Token magnitude(size_t begin) const {
    if (text_.substr(begin).starts_with("\\frac")) return latex_fraction(begin);
    const Token first = plain(begin);
    if (!first.number) return first;
    const bool whole = first.end == digits_end(begin);
    if (peek(first.end) == '/' && digit(peek(first.end + 1))) return slash_fraction(first);
    if (!whole) return first;
    if (text_.substr(first.end).starts_with("\\frac")) return mixed(first, latex_fraction(first.end));
    if (peek(first.end) == ' ' && digit(peek(first.end + 1))) {  // 1 1/2
      const Token above = plain(first.end + 1);
      if (above.number && above.end == digits_end(first.end + 1) && peek(above.end) == '/' &&
          digit(peek(above.end + 1)))
        return mixed(first, slash_fraction(above));
    }
    return first;
  }

  // Only a proper fraction makes a mixed number; else the first number stands alone.
  static Token mixed(const Token& whole, const Token& fraction) {
    if (!fraction.number) return whole;
    const Rational rest = fraction.number->value - Rational{1, 1};
    if (!rest.numerator.negative()) return whole;
    return {Number{whole.number->value + fraction.number->value, false}, fraction.end};
  }

  Token slash_fraction(const Token& above) const {
    const Token below = plain(above.end + 1);
    if (!below.number || below.number->value.zero()) return {std::nullopt, below.end};
    if (peek(below.end) == '/' && digit(peek(below.end + 1))) {  // a date
      size_t end = below.end;
      while (digit(peek(end)) || peek(end) == '/') ++end;
      return {std::nullopt, end};
    }
    return {Number{above.number->value / below.number->value, false}, below.end};
  }

  // The content of the braces at `i`, or the one digit there; `i` is moved behind it.
  bool argument(size_t& i, std::string_view& content) const {
    while (peek(i) == ' ') ++i;
    if (digit(peek(i))) {
      content = text_.substr(i++, 1);
      return true;
    }
    if (peek(i) != '{') return false;
    int depth = 0;
    for (size_t end = i; end < std::min(text_.size(), i + kLongest); ++end) {
      depth += text_[end] == '{' ? 1 : text_[end] == '}' ? -1 : 0;
      if (depth > 0) continue;
      content = text_.substr(i + 1, end - i - 1);
      i = end + 1;
      return true;
    }
    return false;
  }

  Token latex_fraction(size_t begin) const {
    size_t i = begin + 5;
    std::string_view above, below;
    if (!argument(i, above) || !argument(i, below)) return {std::nullopt, begin + 5};
    if (above.find("\\frac") != above.npos || below.find("\\frac") != below.npos) return {std::nullopt, i};
    const auto a = whole_number(above), b = whole_number(below);
    if (!a || !b || a->percent || b->percent || b->value.zero()) return {std::nullopt, i};
    return {Number{a->value / b->value, false}, i};
  }

  bool percent(size_t& end) const {
    size_t i = end;
    while (peek(i) == ' ') ++i;
    if (peek(i) == '%') {
      end = i + 1;
      return true;
    }
    if (text_.substr(i).starts_with("percent") && text_.substr(i + 7, 3) != "age") {
      end = i + 7;
      return true;
    }
    return false;
  }

  std::string_view text_;
};

// Brackets, quotes and marks around an answer.
std::string_view strip(std::string_view text) {
  constexpr std::string_view kAround = " \t\r\n*`\"'";
  while (true) {
    const size_t size = text.size();
    while (!text.empty() && kAround.find(text.front()) != kAround.npos) text.remove_prefix(1);
    while (!text.empty() && kAround.find(text.back()) != kAround.npos) text.remove_suffix(1);
    for (const auto& [open, close] : {std::pair<std::string_view, std::string_view>{"\\(", "\\)"},
                                      {"\\[", "\\]"},
                                      {"(", ")"},
                                      {"$$", "$$"},
                                      {"$", "$"}})
      if (text.size() > open.size() + close.size() && text.starts_with(open) && text.ends_with(close)) {
        text.remove_prefix(open.size());
        text.remove_suffix(close.size());
      }
    if (text.size() > 1 && text.ends_with('.')) text.remove_suffix(1);
    if (text.size() == size) return text;
  }
}

}  // namespace

std::optional<Number> whole_number(std::string_view text) {
  const std::string cleaned = clean(text);
  std::string body(strip(cleaned));
  while (body.size() > 1 && (body[0] == '-' || body[0] == '+') && body[1] == ' ') body.erase(1, 1);
  for (size_t at; (at = body.find(" /")) != body.npos;) body.erase(at, 1);
  for (size_t at; (at = body.find("/ ")) != body.npos;) body.erase(at + 1, 1);
  if (body.empty()) return std::nullopt;
  const Token token = Scanner(body).read(0);
  return token.end == body.size() ? token.number : std::nullopt;
}

template <class Take>
static void each_number(std::string_view text, const Take& take) {
  const std::string cleaned = clean(text);
  const Scanner scanner(cleaned);
  Token token{std::nullopt, 0};
  for (size_t at = 0; scanner.next(at, token); at = token.end)
    if (token.number && !take(*token.number)) return;
}

std::optional<Number> first_number(std::string_view text) {
  std::optional<Number> found;
  each_number(text, [&](const Number& number) {
    found = number;
    return false;
  });
  return found;
}

std::optional<Number> last_number(std::string_view text) {
  std::optional<Number> found;
  each_number(text, [&](const Number& number) {
    found = number;
    return true;
  });
  return found;
}

std::optional<Number> only_number(std::string_view text) {
  std::optional<Number> found;
  bool several = false;
  each_number(text, [&](const Number& number) {
    several = found && !(found->value == number.value && found->percent == number.percent);
    found = number;
    return !several;
  });
  return several ? std::nullopt : found;
}

bool same_number(const Number& a, const Number& b) {
  if (a.percent == b.percent) return a.value == b.value;
  return a.value == b.value || (a.percent ? percent_of(a).value == b.value : a.value == percent_of(b).value);
}

std::string number_text(const Number& number) {
  return number.percent ? percent_of(number).value.text() : number.value.text();
}

}  // namespace cairn::rl
