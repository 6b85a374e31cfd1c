// UTF-8 by hand: what the tokenizer needs of it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace cairn::data {

// The code point at P of valid UTF-8; `length` gets its bytes (1-4).
inline uint32_t decode_utf8(const char* p, int& length) {
  const auto* s = reinterpret_cast<const unsigned char*>(p);
  if (s[0] < 0x80) {
    length = 1;
    return s[0];
  }
  if (s[0] < 0xE0) {
    length = 2;
    return (s[0] & 0x1Fu) << 6 | (s[1] & 0x3Fu);
  }
  if (s[0] < 0xF0) {
    length = 3;
    return (s[0] & 0x0Fu) << 12 | (s[1] & 0x3Fu) << 6 | (s[2] & 0x3Fu);
  }
  length = 4;
  return (s[0] & 0x07u) << 18 | (s[1] & 0x3Fu) << 12 | (s[2] & 0x3Fu) << 6 | (s[3] & 0x3Fu);
}

// Bytes of the character that starts with BYTE in valid UTF-8.
inline int utf8_length(unsigned char byte) { return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4; }

void append_utf8(std::string& out, uint32_t code_point);

// The code point before P (P > begin, valid UTF-8).
uint32_t last_code_point(std::string_view text);

// How many bytes from the start of TEXT are valid UTF-8 (Unicode's table 3-7: no surrogates, no overlong forms).
size_t valid_utf8_prefix(std::string_view text);

// Each maximal invalid part becomes U+FFFD: Python's errors="replace", Rust's from_utf8_lossy.
std::string replace_invalid_utf8(std::string_view text);

// True where no byte is above 127.
bool is_ascii(std::string_view text);

// Calls fn(code_point, std::string_view of its bytes) for every character of valid UTF-8.
template <class Fn>
void for_each_char(std::string_view text, Fn fn) {
  for (size_t i = 0; i < text.size();) {
    int length;
    const uint32_t c = decode_utf8(text.data() + i, length);
    fn(c, text.substr(i, length));
    i += length;
  }
}

}  // namespace cairn::data
