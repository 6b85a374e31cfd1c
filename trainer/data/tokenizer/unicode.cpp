#include "trainer/data/tokenizer/unicode.h"

#include <unicode/brkiter.h>
#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/uniset.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "trainer/data/tokenizer/utf8.h"

namespace cairn::data {
namespace {

void check(UErrorCode status, const char* what) {
  if (U_FAILURE(status)) throw std::runtime_error(std::string("ICU: ") + what + ": " + u_errorName(status));
}

uint16_t category_bits(uint32_t c) {
  switch (u_charType(static_cast<UChar32>(c))) {
    case U_UPPERCASE_LETTER:
      return kLu;
    case U_LOWERCASE_LETTER:
      return kLl;
    case U_TITLECASE_LETTER:
      return kLt;
    case U_MODIFIER_LETTER:
      return kLm;
    case U_OTHER_LETTER:
      return kLo;
    case U_NON_SPACING_MARK:
    case U_ENCLOSING_MARK:
    case U_COMBINING_SPACING_MARK:
      return kMark | kWord;
    case U_DECIMAL_DIGIT_NUMBER:
      return kDecimal;
    case U_LETTER_NUMBER:
    case U_OTHER_NUMBER:
      return kNumber;
    case U_CONNECTOR_PUNCTUATION:
      return kPunctuation | kWord;
    case U_DASH_PUNCTUATION:
    case U_START_PUNCTUATION:
    case U_END_PUNCTUATION:
    case U_INITIAL_PUNCTUATION:
    case U_FINAL_PUNCTUATION:
    case U_OTHER_PUNCTUATION:
      return kPunctuation;
    case U_MATH_SYMBOL:
    case U_CURRENCY_SYMBOL:
    case U_MODIFIER_SYMBOL:
    case U_OTHER_SYMBOL:
      return kSymbol;
    default:
      return 0;
  }
}

// Superscripts and fractions.
bool is_latin1_number(uint32_t c) { return c == 0xB2 || c == 0xB3 || c == 0xB9 || (c >= 0xBC && c <= 0xBE); }

uint16_t classify(uint32_t c) {
  const auto& newer = newer_characters();
  const auto at =
      std::upper_bound(newer.begin(), newer.end(), c, [](uint32_t v, const auto& r) { return v < r.first; });
  if (at != newer.begin() && c <= std::prev(at)->last) {
    const uint16_t bits = std::prev(at)->classes;
    return bits == kMark ? kMark | kWord : bits;
  }
  uint16_t bits = category_bits(c);
  if (u_hasBinaryProperty(static_cast<UChar32>(c), UCHAR_WHITE_SPACE)) bits |= kSpace;
  if (u_hasBinaryProperty(static_cast<UChar32>(c), UCHAR_ALPHABETIC)) bits |= kWord;
  // NOTE: the superscripts and fractions of Latin-1 are word characters for the official library's engine.
  if (is_latin1_number(c)) bits |= kWord;
  return bits;
}

// Assigned in Unicode MAJOR.0 or before.
bool assigned_by(uint32_t c, int major) {
  UVersionInfo age;
  u_charAge(static_cast<UChar32>(c), age);
  return age[0] != 0 && (age[0] < major || (age[0] == major && age[1] == 0));
}

// The capital letters that ICU 72 does not know, with their small ones.
struct CasePair {
  uint32_t first, last;
  int32_t delta;
};
constexpr CasePair kNewerCase[] = {
    {0x1C89, 0x1C89, 1},      {0xA7CB, 0xA7CB, 0x264 - 0xA7CB},
    {0xA7CC, 0xA7CC, 1},      {0xA7CE, 0xA7CE, 1},
    {0xA7D2, 0xA7D2, 1},      {0xA7D4, 0xA7D4, 1},
    {0xA7DA, 0xA7DA, 1},      {0xA7DC, 0xA7DC, 0x19B - 0xA7DC},
    {0x10D50, 0x10D65, 0x20}, {0x16EA0, 0x16EB8, 0x1B},
};

const icu::Normalizer2& normalizer(NormalForm form) {
  struct All {
    icu::UnicodeSet known;
    std::unique_ptr<icu::FilteredNormalizer2> forms[4];
  };
  static const All* all = [] {
    auto made = std::make_unique<All>();
    UErrorCode status = U_ZERO_ERROR;
    made->known.applyPattern(UNICODE_STRING_SIMPLE("[:age=9.0:]"), status);
    made->known.freeze();
    const icu::Normalizer2* base[4] = {
        icu::Normalizer2::getNFCInstance(status), icu::Normalizer2::getNFDInstance(status),
        icu::Normalizer2::getNFKCInstance(status), icu::Normalizer2::getNFKDInstance(status)};
    check(status, "normal forms");
    for (int i = 0; i < 4; ++i) made->forms[i] = std::make_unique<icu::FilteredNormalizer2>(*base[i], made->known);
    return made.release();  // lives as long as the process
  }();
  return *all->forms[static_cast<int>(form)];
}

}  // namespace

const std::vector<NewerRange>& newer_characters() {
  static const std::vector<NewerRange> ranges = {
#include "trainer/data/tokenizer/unicode_additions.inc"
  };
  return ranges;
}

const uint16_t* bmp_classes() {
  static const uint16_t* table = [] {
    auto* made = new uint16_t[0x10000];  // lives as long as the process
    for (uint32_t c = 0; c < 0x10000; ++c) made[c] = classify(c);
    return made;
  }();
  return table;
}

uint16_t astral_class(uint32_t c) { return classify(c); }

bool is_number(uint32_t c) {
  return (char_class(bmp_classes(), c) & kNumber) != 0 || (c >= 0x11DE0 && c <= 0x11DE9) ||
         (c >= 0x16FF4 && c <= 0x16FF6);
}

bool is_word(uint32_t c) {
  if (is_latin1_number(c)) return false;
  return (char_class(bmp_classes(), c) & kWord) != 0 || c == 0x200C || c == 0x200D;
}

bool is_punctuation(uint32_t c) {
  if (c < 128) return (c >= 33 && c < 48) || (c >= 58 && c < 65) || (c >= 91 && c < 97) || (c >= 123 && c < 127);
  if (c == 0x166D || c == 0x111C9) return true;  // were punctuation then
  return (category_bits(c) & kPunctuation) != 0 && assigned_by(c, 8);
}

bool is_combining_mark(uint32_t c) {
  if (c < 0x300) return false;
  if (c == 0x1CF2 || c == 0x1CF3) return true;  // were marks then
  return (category_bits(c) & kMark) != 0 && assigned_by(c, 9) && c != 0x111C9;
}

bool is_nonspacing_mark(uint32_t c) {
  if (c < 0x300) return false;
  if (c == 0x1734) return true;                                                 // was one then
  if (c == 0x1885 || c == 0x1886 || c == 0xA9BD || c == 0x111C9) return false;  // were none
  return u_charType(static_cast<UChar32>(c)) == U_NON_SPACING_MARK && assigned_by(c, 8);
}

bool is_other(uint32_t c) {
  switch (u_charType(static_cast<UChar32>(c))) {
    case U_CONTROL_CHAR:
    case U_FORMAT_CHAR:
      return assigned_by(c, 8);
    case U_PRIVATE_USE_CHAR:
      return true;
    default:
      return false;
  }
}

void append_lowercase(std::string& out, uint32_t c) {
  if (c == 0x130) {  // the one capital whose small letter is two characters
    out += "i\xCC\x87";
    return;
  }
  for (const CasePair& pair : kNewerCase)
    if (c >= pair.first && c <= pair.last) return append_utf8(out, c + pair.delta);
  append_utf8(out, static_cast<uint32_t>(u_tolower(static_cast<UChar32>(c))));
}

std::string normalize(std::string_view text, NormalForm form) {
  if (is_ascii(text)) return std::string(text);
  if (text.size() > INT32_MAX)
    throw std::runtime_error("a text of more than 2 GiB cannot be normalized: cut it into documents");
  std::string out;
  out.reserve(text.size() + text.size() / 8);
  icu::StringByteSink<std::string> sink(&out);
  UErrorCode status = U_ZERO_ERROR;
  normalizer(form).normalizeUTF8(0, icu::StringPiece(text.data(), static_cast<int32_t>(text.size())), sink, nullptr,
                                 status);
  check(status, "normalization");
  return out;
}

std::vector<size_t> grapheme_ends(std::string_view text) {
  thread_local std::unique_ptr<icu::BreakIterator> breaks;
  UErrorCode status = U_ZERO_ERROR;
  if (!breaks) breaks.reset(icu::BreakIterator::createCharacterInstance(icu::Locale::getRoot(), status));
  check(status, "grapheme clusters");
  UText* utext = utext_openUTF8(nullptr, text.data(), static_cast<int64_t>(text.size()), &status);
  breaks->setText(utext, status);
  check(status, "grapheme clusters");
  std::vector<size_t> ends;
  breaks->first();
  for (int32_t at = breaks->next(); at != icu::BreakIterator::DONE; at = breaks->next()) ends.push_back(at);
  utext_close(utext);
  return ends;
}

}  // namespace cairn::data
