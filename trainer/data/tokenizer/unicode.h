// Unicode classes and normal forms as the official library sees them. It mixes versions of Unicode: its regular
// expressions (Oniguruma) know 16.0, its letter case and digits (Rust) 17.0, its normal forms 9.0, its punctuation 8.0.
// ICU gives the data, a table the newer characters.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cairn::data {

// Classes of a character, as bits.
enum CharClass : uint16_t {
  kLetter = 1,
  kNumber = 2,
  kSpace = 4,  // White_Space: what \s matches
  kPunctuation = 8,
  kSymbol = 16,
  kMark = 32,
  kWord = 64,  // \w: alphabetic, marks, decimal digits, connectors
  kDecimal = 128 | kNumber | kWord,
  kUpper = 256,
  kLower = 512,
  kTitle = 1024,
  kModifier = 2048,
  kOther = 4096,
  kLu = kUpper | kLetter | kWord,
  kLl = kLower | kLetter | kWord,
  kLt = kTitle | kLetter | kWord,
  kLm = kModifier | kLetter | kWord,
  kLo = kOther | kLetter | kWord,
};

// Classes of the code points below 0x10000, by code point.
const uint16_t* bmp_classes();
uint16_t astral_class(uint32_t code_point);
inline uint16_t char_class(const uint16_t* bmp, uint32_t c) { return c < 0x10000 ? bmp[c] : astral_class(c); }

bool is_number(uint32_t code_point);  // of the Digits pre-tokenizer: N* of Unicode 17.0
// \w of Rust's regular expressions (Whitespace, single_word): unlike Oniguruma's without Latin-1's superscripts and
// fractions, and with the two joiners.
bool is_word(uint32_t code_point);
bool is_punctuation(uint32_t code_point);  // of the Punctuation and Bert pre-tokenizers: ASCII's, and P* of Unicode 8.0
bool is_combining_mark(uint32_t code_point);   // of StripAccents: M* of Unicode 9.0
bool is_nonspacing_mark(uint32_t code_point);  // of BertNormalizer: Mn of Unicode 8.0
bool is_other(uint32_t code_point);            // Cc, Cf, Co of Unicode 8.0
void append_lowercase(std::string& out, uint32_t code_point);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };
// TEXT in a normal form of Unicode 9.0; characters that came later are left alone.
std::string normalize(std::string_view text, NormalForm form);

// Ends (byte offsets) of the extended grapheme clusters of TEXT.
std::vector<size_t> grapheme_ends(std::string_view text);

// Characters that Unicode assigned after 14.0.
struct NewerRange {
  uint32_t first, last;
  uint16_t classes;
};
const std::vector<NewerRange>& newer_characters();

}  // namespace cairn::data
