#include "trainer/chat/jinja/lexer.h"

#include <fmt/format.h>

#include <algorithm>

#include "trainer/chat/jinja/text.h"
#include "trainer/data/tokenizer/utf8.h"

namespace cairn::jinja {
namespace {

bool is_digit_char(char c) { return c >= '0' && c <= '9'; }
bool is_name_char(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || (c & 0x80); }

// \r\n and \r become \n.
std::string with_newlines(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\r') {
      out += '\n';
      if (i + 1 < text.size() && text[i + 1] == '\n') ++i;
    } else {
      out += text[i];
    }
  }
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(with_newlines(source)) {
    if (!source_.empty() && source_.back() == '\n') source_.pop_back();  // one newline at the end does not count
  }

  std::vector<Token> run() {
    while (at_ < source_.size()) root();
    push(Token::end);
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void refuse(const std::string& message, Fault fault = Fault::syntax) const {
    throw Error(fault, message, line_);
  }
  bool sees(std::string_view what, size_t at) const { return source_.compare(at, what.size(), what) == 0; }
  char peek(size_t at) const { return at < source_.size() ? source_[at] : '\0'; }

  void push(Token::Kind kind, std::string text = {}) { tokens_.push_back({kind, std::move(text), {}, line_}); }

  // Moves to END; lines are counted, and whether what was read ends one.
  void move(size_t end) {
    line_ += static_cast<int>(std::count(source_.begin() + at_, source_.begin() + end, '\n'));
    if (end > at_) line_starting_ = source_[end - 1] == '\n';
    at_ = end;
  }

  size_t after_space(size_t at) const {
    while (at < source_.size()) {
      int bytes;
      if (!is_space(data::decode_utf8(source_.data() + at, bytes))) break;
      at += bytes;
    }
    return at;
  }

  // Behind the closing MARK (`%}`, `}}`, `#}`) at AT with its sign, or npos. A block's takes a newline along.
  size_t after_close(std::string_view mark, size_t at, bool block) const {
    if (sees(mark, at)) return at + mark.size() + (block && peek(at + mark.size()) == '\n');
    if (peek(at) == '-' && sees(mark, at + 1)) return after_space(at + 1 + mark.size());
    if (block && peek(at) == '+' && sees(mark, at + 1)) return at + 1 + mark.size();
    return std::string::npos;
  }

  // `{% raw %}` at AT: behind it, or npos.
  size_t after_raw(size_t at) const {
    size_t p = at + 2;
    if (peek(p) == '-' || peek(p) == '+') ++p;
    p = after_space(p);
    if (!sees("raw", p)) return std::string::npos;
    p = after_space(p + 3);
    if (sees("%}", p)) return p + 2;
    return peek(p) == '-' && sees("%}", p + 1) ? after_space(p + 3) : std::string::npos;
  }

  // Text before a tag at TAG whose sign is SIGN; `may_strip`: it is no {{ }}.
  void text_before(size_t tag, char sign, bool may_strip) {
    std::string_view text(source_.data() + at_, tag - at_);
    if (sign == '-') {
      text = strip(text, {}, Side::right);
    } else if (sign != '+' && may_strip) {
      const size_t newline = text.rfind('\n'), from = newline == std::string_view::npos ? 0 : newline + 1;
      if ((from > 0 || line_starting_) && from < text.size() && is_all_space(text.substr(from)))
        text = text.substr(0, from);
    }
    if (!text.empty()) push(Token::data, std::string(text));
    move(tag);
  }

  void root() {
    size_t tag = at_;
    for (;; ++tag) {
      tag = source_.find('{', tag);
      if (tag == std::string::npos) {
        push(Token::data, source_.substr(at_));
        return move(source_.size());
      }
      const char kind = peek(tag + 1);
      if (kind == '%' || kind == '{' || kind == '#') break;
    }
    const char kind = source_[tag + 1];
    const char sign = peek(tag + 2) == '-' || peek(tag + 2) == '+' ? source_[tag + 2] : '\0';
    text_before(tag, sign, kind != '{');
    if (kind == '%') {
      if (const size_t raw = after_raw(tag); raw != std::string::npos) {
        move(raw);
        return raw_text();
      }
    }
    if (kind == '#') return comment(tag + 2 + (sign != '\0'));
    push(kind == '%' ? Token::block_begin : Token::variable_begin);
    move(tag + 2 + (sign != '\0'));
    expression(kind == '%');
  }

  void comment(size_t from) {
    for (size_t p = from; p < source_.size(); ++p) {
      if (const size_t end = after_close("#}", p, true); end != std::string::npos) return move(end);
    }
    refuse("Missing end of comment tag");
  }

  void raw_text() {
    for (size_t tag = source_.find("{%", at_); tag != std::string::npos; tag = source_.find("{%", tag + 1)) {
      const char sign = peek(tag + 2) == '-' || peek(tag + 2) == '+' ? source_[tag + 2] : '\0';
      size_t p = after_space(tag + 2 + (sign != '\0'));
      if (!sees("endraw", p)) continue;
      p = after_close("%}", after_space(p + 6), true);
      if (p == std::string::npos) continue;
      text_before(tag, sign, true);
      return move(p);
    }
    refuse("Missing end of raw directive");
  }

  void expression(bool block) {
    std::string open;  // brackets that wait to be closed
    while (true) {
      if (at_ >= source_.size()) return;  // the parser says what is missing
      if (open.empty()) {
        const size_t end = after_close(block ? "%}" : "}}", at_, block);
        if (end != std::string::npos) {
          push(block ? Token::block_end : Token::variable_end);
          return move(end);
        }
      }
      if (const size_t end = after_space(at_); end > at_) {
        move(end);
      } else if (is_digit_char(source_[at_])) {
        number();
      } else if (is_name_char(source_[at_])) {
        size_t p = at_;
        while (is_name_char(peek(p)) && p < source_.size()) ++p;
        const std::string name = source_.substr(at_, p - at_);
        if (!data::is_ascii(name)) refuse("a name with letters beyond ASCII (" + name + ") is not supported", Fault::unsupported);
        push(Token::name, name);
        move(p);
      } else if (source_[at_] == '\'' || source_[at_] == '"') {
        quoted();
      } else {
        sign(open);
      }
    }
  }

  void sign(std::string& open) {
    static constexpr std::string_view kSigns[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
                                                  "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};
    const auto found = std::find_if(std::begin(kSigns), std::end(kSigns), [&](auto s) { return sees(s, at_); });
    if (found == std::end(kSigns)) refuse(fmt::format("unexpected char {}", repr(source_.substr(at_, 1))));
    const char c = (*found)[0];
    if (c == '(' || c == '[' || c == '{') open += c == '(' ? ')' : c == '[' ? ']' : '}';
    if (c == ')' || c == ']' || c == '}') {
      if (open.empty()) refuse(fmt::format("unexpected '{}'", c));
      if (open.back() != c) refuse(fmt::format("unexpected '{}', expected '{}'", c, open.back()));
      open.pop_back();
    }
    push(Token::sign, std::string(*found));
    move(at_ + found->size());
  }

  // \d+ with single underscores between digits, from P; P where there is none.
  size_t digits(size_t p) const {
    if (!is_digit_char(peek(p))) return p;
    for (++p; is_digit_char(peek(p)) || (peek(p) == '_' && is_digit_char(peek(p + 1))); ++p) {}
    return p;
  }

  void number() {
    const size_t whole = digits(at_);
    size_t end = whole;
    bool is_real = false;
    if (at_ == 0 || source_[at_ - 1] != '.') {
      if (peek(end) == '.' && digits(end + 1) > end + 1) {
        end = digits(end + 1);
        is_real = true;
      }
      if (peek(end) == 'e' || peek(end) == 'E') {
        const size_t exponent = end + 1 + (peek(end + 1) == '+' || peek(end + 1) == '-');
        if (digits(exponent) > exponent) {
          end = digits(exponent);
          is_real = true;
        }
      }
    }
    int base = 10;
    if (!is_real) {
      const char mark = static_cast<char>(peek(at_ + 1) | 0x20);
      const int marked = source_[at_] != '0' ? 0 : mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 0;
      const auto fits = [&](char c) {
        const int digit = is_digit_char(c) ? c - '0' : (c | 0x20) >= 'a' && (c | 0x20) <= 'f' ? (c | 0x20) - 'a' + 10 : 99;
        return digit < marked;
      };
      size_t p = at_ + 2;
      while (marked && (fits(peek(p)) || (peek(p) == '_' && fits(peek(p + 1))))) ++p;
      if (marked && p > at_ + 2) {
        base = marked;
        end = p;
      } else if (source_[at_] == '0') {  // zeros alone: what follows is a number of its own
        for (end = at_ + 1; peek(end) == '0' || (peek(end) == '_' && peek(end + 1) == '0'); ++end) {}
      }
    }
    std::string text = source_.substr(at_, end - at_);
    text.erase(std::remove(text.begin(), text.end(), '_'), text.end());
    push(Token::number, text);
    try {
      if (is_real) {
        tokens_.back().value = *to_real(text);
      } else {
        tokens_.back().value = *to_integer(text, base);
      }
    } catch (const Error& error) {
      refuse(error.what(), error.fault);
    }
    move(end);
  }

  void quoted() {
    const char quote = source_[at_];
    size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) refuse(fmt::format("unexpected char {}", repr(std::string_view(&quote, 1))));
    push(Token::text, unescaped(std::string_view(source_).substr(at_ + 1, end - at_ - 1)));
    move(end + 1);
  }

  uint32_t hex(std::string_view text, size_t at, size_t count, const char* what) const {
    uint32_t value = 0;
    for (size_t i = at; i < at + count; ++i) {
      const char c = i < text.size() ? text[i] : 'z';
      if (!std::isxdigit(static_cast<unsigned char>(c))) refuse(fmt::format("truncated {} escape", what));
      value = value * 16 + (is_digit_char(c) ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    return value;
  }

  std::string unescaped(std::string_view text) const {
    std::string out;
    const auto add = [&](uint32_t c) {
      if (c >= 0xD800 && c < 0xE000) refuse("a surrogate in a string is not supported", Fault::unsupported);
      if (c > 0x10FFFF) refuse("illegal Unicode character");
      data::append_utf8(out, c);
    };
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '\\') {
        out += text[i];
        continue;
      }
      const char c = text[++i];
      static constexpr std::string_view kFrom = "\\'\"abfnrtv", kTo = "\\'\"\a\b\f\n\r\t\v";
      if (c == '\n') continue;
      if (const size_t known = kFrom.find(c); known != std::string_view::npos) {
        out += kTo[known];
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const size_t count = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        add(hex(text, i + 1, count, c == 'x' ? "\\xXX" : c == 'u' ? "\\uXXXX" : "\\UXXXXXXXX"));
        i += count;
      } else if (c >= '0' && c <= '7') {
        uint32_t value = 0;
        size_t p = i;
        for (; p < text.size() && p < i + 3 && text[p] >= '0' && text[p] <= '7'; ++p) value = value * 8 + (text[p] - '0');
        add(value);
        i = p - 1;
      } else if (c == 'N') {
        refuse("\\N{...} in a string is not supported", Fault::unsupported);
      } else if (c & 0x80) {
        // NOTE: jinja2 writes characters beyond ASCII as escapes before it reads escapes: a backslash before one makes
        // its escape plain text.
        int bytes;
        const uint32_t code = data::decode_utf8(text.data() + i, bytes);
        out += code < 0x100 ? fmt::format("\\x{:02x}", code)
                            : code < 0x10000 ? fmt::format("\\u{:04x}", code) : fmt::format("\\U{:08x}", code);
        i += bytes - 1;
      } else {
        out += '\\';
        out += c;
      }
    }
    return out;
  }

  std::string source_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  if (data::valid_utf8_prefix(source) != source.size()) throw Error(Fault::syntax, "it is not valid UTF-8", 1);
  return Lexer(source).run();
}

}  // namespace cairn::jinja
