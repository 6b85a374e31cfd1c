#include "trainer/chat/jinja/text.h"

#include <fmt/format.h>
#include <unicode/bytestream.h>
#include <unicode/casemap.h>
#include <unicode/uchar.h>

#include <charconv>
#include <cmath>
#include <limits>

#include "trainer/chat/jinja/error.h"
#include "trainer/data/tokenizer/utf8.h"

namespace cairn::jinja {
namespace {

using data::decode_utf8;
using data::for_each_char;
using data::is_ascii;
using data::utf8_length;

uint32_t code_point(std::string_view character) {
  int length;
  return decode_utf8(character.data(), length);
}

template <class Map>
std::string mapped(std::string_view text, Map map) {
  std::string out;
  icu::StringByteSink<std::string> sink(&out);
  UErrorCode status = U_ZERO_ERROR;
  map(icu::StringPiece(text.data(), static_cast<int32_t>(text.size())), sink, status);
  if (U_FAILURE(status)) throw Error(Fault::failed, fmt::format("letter case: {}", u_errorName(status)));
  return out;
}

std::string title_of_char(std::string_view character) {
  return mapped(character, [](auto piece, auto& sink, auto& status) {
    icu::CaseMap::utf8ToTitle("", U_TITLECASE_WHOLE_STRING | U_TITLECASE_NO_BREAK_ADJUSTMENT, nullptr, piece, sink,
                              nullptr, status);
  });
}

bool is_cased(uint32_t c) { return u_hasBinaryProperty(static_cast<UChar32>(c), UCHAR_CASED); }

// Unicode's Final_Sigma: a cased letter before it and none after, whatever is case-ignorable between.
bool ends_word(const std::vector<std::string_view>& chars, size_t at) {
  const auto ignorable = [](uint32_t c) {
    return u_hasBinaryProperty(static_cast<UChar32>(c), UCHAR_CASE_IGNORABLE);
  };
  size_t before = at, after = at + 1;
  while (before > 0 && ignorable(code_point(chars[before - 1]))) --before;
  while (after < chars.size() && ignorable(code_point(chars[after]))) ++after;
  return before > 0 && is_cased(code_point(chars[before - 1])) &&
         !(after < chars.size() && is_cased(code_point(chars[after])));
}

template <class Test>
bool all_are(std::string_view text, Test test) {
  bool all = !text.empty();
  for_each_char(text, [&](uint32_t c, std::string_view) { all = all && test(static_cast<UChar32>(c)); });
  return all;
}

bool letter(UChar32 c) { return u_isalpha(c); }  // L*
bool digit(UChar32 c) {
  const int32_t kind = u_getIntPropertyValue(c, UCHAR_NUMERIC_TYPE);
  return kind == U_NT_DECIMAL || kind == U_NT_DIGIT;
}

bool is_printable(uint32_t c) {
  if (c == ' ') return true;
  switch (u_charType(static_cast<UChar32>(c))) {
    case U_UNASSIGNED:
    case U_CONTROL_CHAR:
    case U_FORMAT_CHAR:
    case U_PRIVATE_USE_CHAR:
    case U_SURROGATE:
    case U_SPACE_SEPARATOR:
    case U_LINE_SEPARATOR:
    case U_PARAGRAPH_SEPARATOR:
      return false;
    default:
      return true;
  }
}

bool breaks_line(uint32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

// Digits with single underscores between them; without the underscores.
std::optional<std::string> digits_of(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      out += text[i];
    } else if (i == 0 || i + 1 == text.size() || text[i - 1] == '_' || !std::isalnum(static_cast<unsigned char>(text[i - 1])) ||
               !std::isalnum(static_cast<unsigned char>(text[i + 1]))) {
      return std::nullopt;
    }
  }
  return out;
}

}  // namespace

bool is_space(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

int64_t length(std::string_view text) {
  int64_t count = 0;
  for (const char byte : text) count += (static_cast<unsigned char>(byte) & 0xC0) != 0x80;
  return count;
}

size_t offset_of(std::string_view text, int64_t index) {
  if (is_ascii(text)) return static_cast<size_t>(index);
  size_t at = 0;
  for (; index > 0; --index) at += utf8_length(static_cast<unsigned char>(text[at]));
  return at;
}

std::vector<std::string_view> characters(std::string_view text) {
  std::vector<std::string_view> chars;
  chars.reserve(text.size());
  for_each_char(text, [&](uint32_t, std::string_view bytes) { chars.push_back(bytes); });
  return chars;
}

std::string_view strip(std::string_view text, std::optional<std::string_view> chars, Side side) {
  const auto goes = [&](std::string_view character) {
    return chars ? chars->find(character) != std::string_view::npos : is_space(code_point(character));
  };
  if (side != Side::right) {
    while (!text.empty()) {
      const auto first = text.substr(0, utf8_length(static_cast<unsigned char>(text[0])));
      if (!goes(first)) break;
      text.remove_prefix(first.size());
    }
  }
  if (side != Side::left) {
    while (!text.empty()) {
      size_t at = text.size() - 1;
      while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
      if (!goes(text.substr(at))) break;
      text.remove_suffix(text.size() - at);
    }
  }
  return text;
}

std::vector<std::string_view> split(std::string_view text, std::optional<std::string_view> separator, int64_t limit,
                                    bool from_right) {
  std::vector<std::string_view> parts;
  if (limit < 0) limit = std::numeric_limits<int64_t>::max();
  if (separator) {
    for (; limit > 0; --limit) {
      const size_t at = from_right ? text.rfind(*separator) : text.find(*separator);
      if (at == std::string_view::npos) break;
      parts.push_back(from_right ? text.substr(at + separator->size()) : text.substr(0, at));
      text = from_right ? text.substr(0, at) : text.substr(at + separator->size());
    }
    parts.push_back(text);
  } else {
    const Side near = from_right ? Side::right : Side::left;
    for (text = strip(text, {}, near); !text.empty() && limit > 0; --limit, text = strip(text, {}, near)) {
      const auto chars = characters(text);
      size_t word = 0, count = 0;
      for (; count < chars.size(); ++count) {
        const auto c = chars[from_right ? chars.size() - 1 - count : count];
        if (is_space(code_point(c))) break;
        word += c.size();
      }
      parts.push_back(from_right ? text.substr(text.size() - word) : text.substr(0, word));
      text = from_right ? text.substr(0, text.size() - word) : text.substr(word);
    }
    text = strip(text, {}, from_right ? Side::right : Side::left);
    if (!text.empty()) parts.push_back(text);
  }
  if (from_right) parts = {parts.rbegin(), parts.rend()};
  return parts;
}

std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> lines;
  size_t start = 0;
  for (size_t i = 0; i < text.size();) {
    int bytes;
    const uint32_t c = decode_utf8(text.data() + i, bytes);
    size_t next = i + bytes;
    if (breaks_line(c)) {
      if (c == '\r' && next < text.size() && text[next] == '\n') ++next;
      lines.push_back(text.substr(start, (keep_ends ? next : i) - start));
      start = next;
    }
    i = next;
  }
  if (start < text.size()) lines.push_back(text.substr(start));
  return lines;
}

std::string replace(std::string_view text, std::string_view old, std::string_view fresh, int64_t count) {
  if (count < 0) count = std::numeric_limits<int64_t>::max();
  std::string out;
  if (old.empty()) {  // before every character, and at the end
    for (const std::string_view c : characters(text)) {
      if (count-- > 0) out += fresh;
      out += c;
    }
    if (count > 0) out += fresh;
    return out;
  }
  size_t from = 0;
  for (; count > 0; --count) {
    const size_t at = text.find(old, from);
    if (at == std::string_view::npos) break;
    out += text.substr(from, at - from);
    out += fresh;
    from = at + old.size();
  }
  out += text.substr(from);
  return out;
}

int64_t count_of(std::string_view text, std::string_view part) {
  if (part.empty()) return length(text) + 1;
  int64_t count = 0;
  for (size_t at = text.find(part); at != std::string_view::npos; at = text.find(part, at + part.size())) ++count;
  return count;
}

std::string upper(std::string_view text) {
  return mapped(text, [](auto piece, auto& sink, auto& status) {
    icu::CaseMap::utf8ToUpper("", 0, piece, sink, nullptr, status);
  });
}

std::string lower(std::string_view text) {
  return mapped(text, [](auto piece, auto& sink, auto& status) {
    icu::CaseMap::utf8ToLower("", 0, piece, sink, nullptr, status);
  });
}

std::string capitalize(std::string_view text) {
  if (text.empty()) return "";
  const auto first = text.substr(0, utf8_length(static_cast<unsigned char>(text[0])));
  return title_of_char(first) + lower(text).substr(lower(first).size());
}

std::string title(std::string_view text) {
  const auto chars = characters(text);
  std::string out;
  bool inside = false;
  for (size_t i = 0; i < chars.size(); ++i) {
    const uint32_t c = code_point(chars[i]);
    if (!inside) {
      out += title_of_char(chars[i]);
    } else if (c == 0x3A3) {
      out += ends_word(chars, i) ? "ς" : "σ";
    } else {
      out += lower(chars[i]);
    }
    inside = is_cased(c);
  }
  return out;
}

std::string title_of_words(std::string_view text) {
  std::string out;
  std::string_view word;
  const auto flush = [&] {
    if (word.empty()) return;
    const size_t first = utf8_length(static_cast<unsigned char>(word[0]));
    out += upper(word.substr(0, first)) + lower(word.substr(first));
    word = {};
  };
  for_each_char(text, [&](uint32_t c, std::string_view bytes) {
    if (is_space(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<') {
      flush();
      out += bytes;
    } else {
      word = word.empty() ? bytes : std::string_view(word.data(), word.size() + bytes.size());
    }
  });
  flush();
  return out;
}

bool is_upper(std::string_view text) {
  bool some = false, none_else = true;
  for_each_char(text, [&](uint32_t c, std::string_view) {
    if (u_isULowercase(c) || u_charType(c) == U_TITLECASE_LETTER) none_else = false;
    some = some || u_isUUppercase(c);
  });
  return some && none_else;
}

bool is_lower(std::string_view text) {
  bool some = false, none_else = true;
  for_each_char(text, [&](uint32_t c, std::string_view) {
    if (u_isUUppercase(c) || u_charType(c) == U_TITLECASE_LETTER) none_else = false;
    some = some || u_isULowercase(c);
  });
  return some && none_else;
}

bool is_alpha(std::string_view text) { return all_are(text, letter); }
bool is_digit(std::string_view text) { return all_are(text, digit); }
bool is_alnum(std::string_view text) {
  return all_are(text, [](UChar32 c) {
    return letter(c) || u_getIntPropertyValue(c, UCHAR_NUMERIC_TYPE) != U_NT_NONE;
  });
}
bool is_all_space(std::string_view text) {
  return all_are(text, [](UChar32 c) { return is_space(static_cast<uint32_t>(c)); });
}

std::string repr(std::string_view text) {
  const char quote = text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos ? '"' : '\'';
  std::string out(1, quote);
  for_each_char(text, [&](uint32_t c, std::string_view bytes) {
    if (c == static_cast<uint32_t>(quote) || c == '\\') {
      out += '\\';
      out += bytes;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (is_printable(c)) {
      out += bytes;
    } else if (c < 0x100) {
      out += fmt::format("\\x{:02x}", c);
    } else if (c < 0x10000) {
      out += fmt::format("\\u{:04x}", c);
    } else {
      out += fmt::format("\\U{:08x}", c);
    }
  });
  out += quote;
  return out;
}

// The fewest digits that give the number back; an exponent below 1e-4 and from 1e16.
std::string repr(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number < 0 ? "-inf" : "inf";
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, number, std::chars_format::scientific).ptr;
  const std::string_view text(buffer, end - buffer);
  const size_t e = text.find('e');
  int exponent = 0;
  std::from_chars(text.data() + e + (text[e + 1] == '+' ? 2 : 1), end, exponent);
  if (number != 0 && (exponent < -4 || exponent >= 16)) return std::string(text);
  std::string fixed(512, '\0');
  fixed.resize(std::to_chars(fixed.data(), fixed.data() + fixed.size(), number, std::chars_format::fixed).ptr -
               fixed.data());
  return fixed.find('.') == std::string::npos ? fixed + ".0" : fixed;
}

std::optional<int64_t> to_integer(std::string_view text, int base) {
  if (base != 0 && (base < 2 || base > 36)) fail("int() base must be >= 2 and <= 36, or 0");
  text = strip(text);
  bool negative = false;
  if (!text.empty() && (text[0] == '+' || text[0] == '-')) {
    negative = text[0] == '-';
    text.remove_prefix(1);
  }
  if (text.size() > 2 && text[0] == '0') {
    const char mark = static_cast<char>(text[1] | 0x20);
    const int marked = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 0;
    if (marked && (base == marked || base == 0)) {
      base = marked;
      text.remove_prefix(text[2] == '_' ? 3 : 2);
    }
  }
  if (base == 0) {
    base = 10;
    if (text.size() > 1 && text[0] == '0' && text.find_first_not_of("0_") != std::string_view::npos) return std::nullopt;
  }
  const auto digits = digits_of(text);
  if (!digits || digits->empty()) return std::nullopt;
  if (!is_ascii(*digits)) {
    if (is_digit(*digits)) unsupported("a number in digits other than 0 to 9");
    return std::nullopt;
  }
  uint64_t magnitude = 0;
  const auto [end, error] = std::from_chars(digits->data(), digits->data() + digits->size(), magnitude, base);
  if (end != digits->data() + digits->size()) return std::nullopt;
  if (error != std::errc() || magnitude > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
    unsupported(fmt::format("the integer {} beyond 64 bits", *digits));
  return negative ? -static_cast<int64_t>(magnitude) : static_cast<int64_t>(magnitude);
}

std::optional<double> to_real(std::string_view text) {
  text = strip(text);
  const auto clean = digits_of(text);
  if (!clean || clean->empty()) return std::nullopt;
  std::string_view digits = *clean;
  if (!is_ascii(digits)) {
    if (is_digit(digits)) unsupported("a number in digits other than 0 to 9");
    return std::nullopt;
  }
  if (digits[0] == '+' || digits[0] == '-') digits.remove_prefix(1);
  const std::string word = lower(digits);
  const double sign = clean->at(0) == '-' ? -1.0 : 1.0;
  if (word == "inf" || word == "infinity") return sign * std::numeric_limits<double>::infinity();
  if (word == "nan") return std::numeric_limits<double>::quiet_NaN();
  if (digits.empty() || !(std::isdigit(static_cast<unsigned char>(digits[0])) || digits[0] == '.')) return std::nullopt;
  double value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (end != digits.data() + digits.size()) return std::nullopt;
  if (error == std::errc::result_out_of_range) value = std::strtod(std::string(digits).c_str(), nullptr);
  return sign * value;
}

}  // namespace cairn::jinja
