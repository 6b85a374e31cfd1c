// Any other pattern: PCRE2 with Unicode properties and JIT. tokenizer.json holds Oniguruma's syntax, where \s, \w, \h
// and the scripts mean other sets than PCRE2's, and newer characters than PCRE2 10.42 knows; both are written out.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <cstring>
#include <stdexcept>

#include "trainer/data/tokenizer/pattern.h"
#include "trainer/data/tokenizer/unicode.h"
#include "trainer/data/tokenizer/utf8.h"

namespace cairn::data {
namespace {

// Bits that a general category of \p{...} stands for; 0 for a property that is passed on as it is.
uint16_t category_mask(const std::string& name) {
  static const struct {
    const char* name;
    uint16_t mask;
  } kTable[] = {{"L", kLetter}, {"N", kNumber}, {"P", kPunctuation}, {"S", kSymbol}, {"M", kMark}, {"Lu", kUpper},
                {"Ll", kLower}, {"Lt", kTitle}, {"Lm", kModifier},   {"Lo", kOther}, {"Nd", 128}};
  for (const auto& row : kTable)
    if (name == row.name) return row.mask;
  return 0;
}

// The characters newer than PCRE2's tables that a category has, as items of a class.
std::string newer_items(uint16_t mask) {
  std::string out;
  for (const NewerRange& range : newer_characters())
    if (range.classes & mask) out += fmt::format("\\x{{{:x}}}-\\x{{{:x}}}", range.first, range.last);
  return out;
}

const char* const kWordItems = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{b2}\x{b3}\x{b9}\x{bc}-\x{be})";

class Translator {
 public:
  explicit Translator(const std::string& regex) : in_(regex) {}

  std::string run() {
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == '\\') {
        escape(false);
      } else if (c == '[') {
        bracket();
      } else {
        out_ += c;
        ++at_;
      }
    }
    return out_;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw std::runtime_error(fmt::format("the regular expression `{}` uses {}, which is not supported", in_, what));
  }

  // Items for the inside of a class; outside they are wrapped into one.
  void items(const std::string& body, bool negated, bool inside) {
    if (!inside) {
      out_ += (negated ? "[^" : "[") + body + "]";
    } else if (!negated) {
      out_ += body;
    } else {
      refuse("a negated property inside a class of characters");
    }
  }

  void escape(bool inside) {
    if (at_ + 1 >= in_.size()) refuse("a lone backslash at its end");
    const char c = in_[at_ + 1];
    switch (c) {
      case 's':
        out_ += R"(\p{White_Space})";
        break;
      case 'S':
        out_ += R"(\P{White_Space})";
        break;
      case 'w':
        items(kWordItems + newer_items(kWord | kMark), false, inside);
        break;
      case 'W':
        items(kWordItems + newer_items(kWord | kMark), true, inside);
        break;
      case 'd':
        items("\\p{Nd}" + newer_items(128), false, inside);
        break;
      case 'D':
        items("\\p{Nd}" + newer_items(128), true, inside);
        break;
      case 'h':
        items("0-9a-fA-F", false, inside);
        break;
      case 'H':
        items("0-9a-fA-F", true, inside);
        break;
      case 'p':
      case 'P':
        property(inside);
        return;
      case 'X':
      case 'R':
      case 'K':
      case 'N':
      case 'O':
      case 'y':
      case 'Y':
      case 'g':
      case 'k':
        refuse(std::string("\\") + c);
      default:
        out_ += in_.substr(at_, 2);
    }
    at_ += 2;
  }

  void property(bool inside) {
    bool negated = in_[at_ + 1] == 'P';
    const size_t close = in_.find('}', at_);
    if (at_ + 2 >= in_.size() || in_[at_ + 2] != '{' || close == std::string::npos) refuse("\\p without braces");
    std::string name = in_.substr(at_ + 3, close - at_ - 3);
    at_ = close + 1;
    if (!name.empty() && name[0] == '^') {
      negated = !negated;
      name.erase(0, 1);
    }
    static const struct {
      const char* longer;
      const char* name;
    } kNames[] = {{"Letter", "L"}, {"Number", "N"}, {"Punctuation", "P"}, {"Symbol", "S"}, {"Mark", "M"}};
    for (const auto& row : kNames)
      if (name == row.longer) name = row.name;
    if (const uint16_t mask = category_mask(name)) {
      const std::string newer = newer_items(mask);
      if (inside && negated) {
        out_ += "\\P{" + name + "}";  // NOTE: here alone the newer characters are not taken out
      } else {
        items("\\p{" + name + "}" + newer, negated, inside);
      }
      return;
    }
    // A script is the plain one in Oniguruma; PCRE2 would take its extensions.
    static const char* const kScripts[] = {"Han",      "Hiragana", "Katakana", "Hangul",   "Latin",   "Greek",
                                           "Cyrillic", "Arabic",   "Hebrew",   "Thai",     "Lao",     "Devanagari",
                                           "Bengali",  "Tamil",    "Telugu",   "Khmer",    "Myanmar", "Tibetan",
                                           "Georgian", "Armenian", "Ethiopic", "Mongolian"};
    for (const char* script : kScripts)
      if (name == script) name = "sc:" + name;
    out_ += (negated ? "\\P{" : "\\p{") + name + "}";
  }

  void bracket() {
    out_ += '[';
    ++at_;
    if (at_ < in_.size() && in_[at_] == '^') {
      out_ += '^';
      ++at_;
    }
    if (at_ < in_.size() && in_[at_] == ']') {
      out_ += "\\]";
      ++at_;
    }
    while (at_ < in_.size() && in_[at_] != ']') {
      if (in_[at_] == '\\') {
        escape(true);
      } else if (in_.compare(at_, 2, "[:") == 0) {
        refuse("a POSIX class");
      } else if (in_[at_] == '[') {
        refuse("a class inside a class");
      } else if (in_.compare(at_, 2, "&&") == 0) {
        refuse("an intersection of classes");
      } else {
        out_ += in_[at_++];
      }
    }
    if (at_ >= in_.size()) refuse("a class that is not closed");
    out_ += ']';
    ++at_;
  }

  const std::string& in_;
  std::string out_;
  size_t at_ = 0;
};

// Per thread: room for one match, and a JIT stack for patterns that need more than the default's 32 KiB.
struct Scratch {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, 64 << 20, nullptr);
  Scratch() { pcre2_jit_stack_assign(context, nullptr, stack); }
  ~Scratch() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
};

class Pcre2Pattern : public Pattern {
 public:
  explicit Pcre2Pattern(const std::string& regex) : regex_(regex) {
    const std::string translated = Translator(regex).run();
    int error = 0;
    size_t offset = 0;
    code_ = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                          PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NO_UTF_CHECK, &error, &offset, nullptr);
    if (!code_) {
      unsigned char message[256];
      pcre2_get_error_message(error, message, sizeof message);
      throw std::runtime_error(fmt::format("the regular expression `{}` is not understood: {} (at {} of `{}`)", regex,
                                           reinterpret_cast<const char*>(message), offset, translated));
    }
    pcre2_jit_compile(code_, PCRE2_JIT_COMPLETE);  // where the machine has no JIT, the interpreter does it
  }
  ~Pcre2Pattern() override { pcre2_code_free(code_); }
  Pcre2Pattern(const Pcre2Pattern&) = delete;

  bool find(std::string_view text, size_t from, Match& match) const override {
    thread_local Scratch scratch;
    const int rc = pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from, PCRE2_NO_UTF_CHECK,
                               scratch.data, scratch.context);
    if (rc == PCRE2_ERROR_NOMATCH) return false;
    if (rc < 0)
      throw std::runtime_error(
          fmt::format("the regular expression `{}` failed on a text (PCRE2 error {})", regex_, rc));
    const size_t* at = pcre2_get_ovector_pointer(scratch.data);
    match = {at[0], at[1]};
    return true;
  }

 private:
  std::string regex_;
  pcre2_code* code_ = nullptr;
};

class LiteralPattern : public Pattern {
 public:
  explicit LiteralPattern(std::string literal) : literal_(std::move(literal)) {}
  bool find(std::string_view text, size_t from, Match& match) const override {
    if (literal_.empty()) return false;
    const size_t at = text.find(literal_, from);
    if (at == std::string_view::npos) return false;
    match = {at, at + literal_.size()};
    return true;
  }

 private:
  std::string literal_;
};

}  // namespace

std::unique_ptr<Pattern> pcre2_pattern(const std::string& regex) { return std::make_unique<Pcre2Pattern>(regex); }
std::unique_ptr<Pattern> literal_pattern(const std::string& literal) {
  return std::make_unique<LiteralPattern>(literal);
}

bool Matches::next(Match& match) {
  while (from_ <= text_.size() && !text_.empty() && pattern_.find(text_, from_, match)) {
    if (match.begin != match.end) {
      from_ = previous_end_ = match.end;
      return true;
    }
    from_ = match.end + (match.end < text_.size() ? utf8_length(static_cast<unsigned char>(text_[match.end])) : 1);
    if (match.end == previous_end_) continue;
    previous_end_ = match.end;
    return true;
  }
  return false;
}

std::unique_ptr<Pattern> compile_pattern(const std::string& regex) {
  if (auto known = known_pattern(regex)) return known;
  return pcre2_pattern(regex);
}

}  // namespace cairn::data
