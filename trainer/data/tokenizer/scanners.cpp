// The well-known split patterns, by hand. Each scanner does what the regular expression above it says, alternative by
// alternative, and is checked against PCRE2 on the same pattern.
#include <cstring>
#include <functional>

#include "trainer/data/tokenizer/pattern.h"
#include "trainer/data/tokenizer/tokenizer.h"
#include "trainer/data/tokenizer/unicode.h"
#include "trainer/data/tokenizer/utf8.h"

namespace cairn::data {

const char* const kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

// A text being scanned: classes of the characters at byte positions.
struct Text {
  const char* end;
  const uint16_t* bmp;

  // Class of the character at P and its length in bytes; P must be before the end.
  uint16_t at(const char* p, int& length) const {
    const auto byte = static_cast<unsigned char>(*p);
    if (byte < 0x80) {
      length = 1;
      return bmp[byte];
    }
    return char_class(bmp, decode_utf8(p, length));
  }
  // Past the characters from P on that have any bit of MASK.
  const char* run(const char* p, unsigned mask) const {
    int length;
    while (p < end && (at(p, length) & mask)) p += length;
    return p;
  }
  // Past the characters from P on that have no bit of MASK.
  const char* run_not(const char* p, unsigned mask) const {
    int length;
    while (p < end && !(at(p, length) & mask)) p += length;
    return p;
  }
  // Past at most COUNT characters with a bit of MASK.
  const char* run(const char* p, unsigned mask, int count) const {
    int length;
    while (count-- > 0 && p < end && (at(p, length) & mask)) p += length;
    return p;
  }
};

bool is_newline(char c) { return c == '\n' || c == '\r'; }

// \s+(?!\S)|\s+ at P, where whitespace stands: all of it at the end of the text or where it is one character, else all
// but the last character.
const char* spaces_but_last(const Text& t, const char* p) {
  const char* last = p;
  int length;
  while (p < t.end && (t.at(p, length) & kSpace)) {
    last = p;
    p += length;
  }
  if (p == t.end) return p;
  return last;  // equal to the start where there was one character: the caller takes that one
}

const char* whitespace(const Text& t, const char* p) {
  const char* q = spaces_but_last(t, p);
  if (q != p) return q;
  int length;
  t.at(p, length);
  return p + length;
}

// \s*[\r\n]+|\s+(?!\S)|\s+ at P, where whitespace stands.
const char* whitespace_lines(const Text& t, const char* p) {
  const char* newline = nullptr;
  int length;
  for (const char* q = p; q < t.end && (t.at(q, length) & kSpace); q += length)
    if (is_newline(*q)) newline = q;
  return newline ? newline + 1 : whitespace(t, p);
}

// 's|'t|'re|'ve|'m|'ll|'d|... at an apostrophe; null where none follows.
const char* contraction(const Text& t, const char* p) {
  if (t.end - p < 2) return nullptr;
  switch (p[1]) {
    case 's':
    case 't':
    case 'm':
    case 'd':
      return p + 2;
    case 'r':
    case 'v':
      return t.end - p > 2 && p[2] == 'e' ? p + 3 : nullptr;
    case 'l':
      return t.end - p > 2 && p[2] == 'l' ? p + 3 : nullptr;
    default:
      return nullptr;
  }
}

// (?i:'s|'t|'re|'ve|'m|'ll|'d): U+017F is an s too.
const char* contraction_any_case(const Text& t, const char* p) {
  if (t.end - p < 2) return nullptr;
  switch (p[1] | 0x20) {
    case 's':
    case 't':
    case 'm':
    case 'd':
      return p + 2;
    case 'r':
    case 'v':
      return t.end - p > 2 && (p[2] | 0x20) == 'e' ? p + 3 : nullptr;
    case 'l':
      return t.end - p > 2 && (p[2] | 0x20) == 'l' ? p + 3 : nullptr;
    default:
      return t.end - p > 2 && std::memcmp(p + 1, "\xC5\xBF", 2) == 0 ? p + 3 : nullptr;
  }
}

// GPT-2: kGpt2Pattern. Every character is in a match.
const char* gpt2(const Text& t, const char* p) {
  if (*p == '\'')
    if (const char* q = contraction(t, p)) return q;
  const char* q = *p == ' ' ? p + 1 : p;
  if (q == t.end) return q;
  int length;
  const unsigned c = t.at(q, length);
  if (c & kLetter) return t.run(q + length, kLetter);
  if (c & kNumber) return t.run(q + length, kNumber);
  if (!(c & kSpace)) return t.run_not(q + length, kSpace | kLetter | kNumber);
  return whitespace(t, p);
}

// cl100k (Llama 3, OLMo 2, ...) with DIGITS = 3, Qwen 2 with 1:
// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
template <int DIGITS>
const char* cl100k(const Text& t, const char* p) {
  if (*p == '\'')
    if (const char* q = contraction_any_case(t, p)) return q;
  int length, next_length;
  const unsigned c = t.at(p, length);
  if (c & kLetter) return t.run(p + length, kLetter);
  if (c & kNumber) return t.run(p + length, kNumber, DIGITS - 1);
  const char* next = p + length;
  const unsigned after = next < t.end ? t.at(next, next_length) : 0;
  if ((after & kLetter) && !is_newline(*p)) return t.run(next + next_length, kLetter);
  const char* q = *p == ' ' ? next : p;
  if (q < t.end && !((q == p ? c : after) & (kSpace | kLetter | kNumber))) {
    q = t.run_not(q, kSpace | kLetter | kNumber);
    while (q < t.end && is_newline(*q)) ++q;
    return q;
  }
  return whitespace_lines(t, p);
}

// DeepSeek's third: [ASCII punctuation][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|
// ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ Null where nothing matches at P (a digit, say).
const char* deepseek(const Text& t, const char* p) {
  const auto is_ascii_letter = [&](const char* q) {
    return q < t.end && static_cast<unsigned char>((*q | 0x20) - 'a') < 26;
  };
  int length, next_length;
  const unsigned c = t.at(p, length);
  const char* next = p + length;
  if (length == 1 && (c & (kPunctuation | kSymbol)) && is_ascii_letter(next)) {
    while (is_ascii_letter(next)) ++next;
    return next;
  }
  if (!(c & (kLetter | kPunctuation | kSymbol)) && !is_newline(*p) && next < t.end) {
    if (t.at(next, next_length) & (kLetter | kMark)) return t.run(next + next_length, kLetter | kMark);
  }
  if (c & (kLetter | kMark)) return t.run(next, kLetter | kMark);
  const char* q = *p == ' ' ? next : p;
  if (q < t.end && (t.at(q, next_length) & (kPunctuation | kSymbol))) {
    q = t.run(q + next_length, kPunctuation | kSymbol);
    while (q < t.end && is_newline(*q)) ++q;
    return q;
  }
  return c & kSpace ? whitespace_lines(t, p) : nullptr;
}

// \p{N}{1,3} and \p{N}, \p{N}+
template <int DIGITS>
const char* digits(const Text& t, const char* p) {
  int length;
  if (!(t.at(p, length) & kNumber)) return nullptr;
  return DIGITS == 0 ? t.run(p + length, kNumber) : t.run(p + length, kNumber, DIGITS - 1);
}

// [一-龥぀-ゟ゠-ヿ]+
const char* deepseek_cjk(const Text& t, const char* p) {
  const char* q = p;
  int length;
  while (q < t.end && static_cast<unsigned char>(*q) >= 0xE3) {
    const uint32_t c = decode_utf8(q, length);
    if (!((c >= 0x4E00 && c <= 0x9FA5) || (c >= 0x3040 && c <= 0x30FF))) break;
    q += length;
  }
  return q == p ? nullptr : q;
}

using Scan = const char* (*)(const Text&, const char*);

template <Scan SCAN, bool CUTS>
class Scanner : public Pattern {
 public:
  bool find(std::string_view text, size_t from, Match& match) const override {
    const Text t{text.data() + text.size(), bmp_};
    for (const char* p = text.data() + from; p < t.end; p += utf8_length(static_cast<unsigned char>(*p)))
      if (const char* q = SCAN(t, p)) {
        match = {static_cast<size_t>(p - text.data()), static_cast<size_t>(q - text.data())};
        return true;
      }
    return false;
  }
  bool cuts_before_single_space() const override { return CUTS; }

 private:
  const uint16_t* bmp_ = bmp_classes();
};

template <Scan SCAN, bool CUTS>
std::unique_ptr<Pattern> make() {
  return std::make_unique<Scanner<SCAN, CUTS>>();
}

#define CL100K_HEAD R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)"
#define CL100K_TAIL R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"

const struct {
  std::string regex;
  std::unique_ptr<Pattern> (*make)();
} kKnown[] = {
    {kGpt2Pattern, make<gpt2, true>},
    {CL100K_HEAD R"(\p{N}{1,3})" CL100K_TAIL, make<cl100k<3>, true>},
    {CL100K_HEAD R"(\p{N})" CL100K_TAIL, make<cl100k<1>, true>},
    {"[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
     "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
     make<deepseek, false>},
    {R"(\p{N}{1,3})", make<digits<3>, false>},
    {R"(\p{N})", make<digits<1>, false>},
    {R"(\p{N}+)", make<digits<0>, false>},
    {"[一-龥\u3040-ゟ゠-ヿ]+", make<deepseek_cjk, false>},
};

}  // namespace

std::unique_ptr<Pattern> known_pattern(const std::string& regex) {
  for (const auto& known : kKnown)
    if (known.regex == regex) return known.make();
  return nullptr;
}

}  // namespace cairn::data
