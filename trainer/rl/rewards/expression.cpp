#include "trainer/rl/rewards/expression.h"

#include <array>

namespace cairn::rl {
namespace {

constexpr size_t kLongest = 1000;
constexpr int kDeepest = 100;

struct Sign {
  std::string_view from;
  char to;  // '\0': nothing
};
constexpr std::array<Sign, 14> kSigns = {{{"\xC3\x97", '*'},      // ×
                                          {"\xC2\xB7", '*'},      // ·
                                          {"\xE2\x8B\x85", '*'},  // ⋅
                                          {"\xC3\xB7", '/'},      // ÷
                                          {"\xE2\x88\x92", '-'},  // −
                                          {"\xE2\x88\x95", '/'},  // ∕
                                          {"\\times", '*'},
                                          {"\\cdot", '*'},
                                          {"\\div", '/'},
                                          {"\\left", '\0'},
                                          {"\\right", '\0'},
                                          {"\\,", '\0'},
                                          {"[", '('},
                                          {"]", ')'}}};

std::string plain(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const Sign* found = nullptr;
    for (const auto& sign : kSigns)
      if (text.substr(i).starts_with(sign.from)) found = &sign;
    if (!found) {
      out += text[i++];
      continue;
    }
    if (found->to != '\0') out += found->to;
    i += found->from.size();
  }
  return out;
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  std::optional<Expression> run() {
    Expression out;
    const Rational value = sum(out, 0);
    blank();
    if (broken_ || at_ != text_.size() || out.numbers.empty()) return std::nullopt;
    if (!by_zero_) out.value = value;
    return out;
  }

 private:
  void blank() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
  }
  bool take(char c) {
    blank();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  bool ok() const { return !broken_; }

  Rational sum(Expression& out, int depth) {
    Rational value = product(out, depth);
    while (ok()) {
      if (take('+')) {
        value = value + product(out, depth);
      } else if (take('-')) {
        value = value - product(out, depth);
      } else {
        break;
      }
    }
    return value;
  }

  Rational product(Expression& out, int depth) {
    Rational value = factor(out, depth);
    while (ok()) {
      if (take('*')) {
        value = value * factor(out, depth);
      } else if (take('/')) {
        const Rational below = factor(out, depth);
        if (below.zero()) {
          by_zero_ = true;
        } else {
          value = value / below;
        }
      } else {
        break;
      }
    }
    return value;
  }

  Rational factor(Expression& out, int depth) {
    if (depth > kDeepest) return fail();
    if (take('-')) return -factor(out, depth + 1);
    if (take('+')) return factor(out, depth + 1);
    if (take('(')) {
      const Rational value = sum(out, depth + 1);
      return take(')') ? value : fail();
    }
    blank();
    const size_t begin = at_;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
    if (begin == at_) return fail();
    out.numbers.push_back(Integer::from_digits(text_.substr(begin, at_ - begin)));
    return {out.numbers.back(), 1};
  }

  Rational fail() {
    broken_ = true;
    return {};
  }

  std::string_view text_;
  size_t at_ = 0;
  bool broken_ = false, by_zero_ = false;
};

}  // namespace

std::optional<Expression> parse_expression(std::string_view text) {
  if (text.size() > kLongest) return std::nullopt;
  const std::string cleaned = plain(text);
  return Parser(cleaned).run();
}

}  // namespace cairn::rl
