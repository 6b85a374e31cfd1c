#include "trainer/data/tokenizer/utf8.h"

#include <cstring>

namespace cairn::data {

void append_utf8(std::string& out, uint32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | c >> 6);
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | c >> 12);
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | c >> 18);
    out += static_cast<char>(0x80 | (c >> 12 & 0x3F));
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

uint32_t last_code_point(std::string_view text) {
  size_t i = text.size() - 1;
  while (i > 0 && (static_cast<unsigned char>(text[i]) & 0xC0) == 0x80) --i;
  int length;
  return decode_utf8(text.data() + i, length);
}

namespace {

bool eight_ascii(const char* p) {
  uint64_t word;
  std::memcpy(&word, p, 8);
  return (word & 0x8080808080808080ull) == 0;
}

// The bytes of the sequence at s[0..n): positive where it is a character, otherwise minus the length of the maximal
// part that could have begun one (at least 1).
int sequence(const unsigned char* s, size_t n) {
  const unsigned char b = s[0];
  if (b < 0x80) return 1;
  const int need = b >= 0xC2 && b <= 0xDF ? 2 : b >= 0xE0 && b <= 0xEF ? 3 : b >= 0xF0 && b <= 0xF4 ? 4 : 0;
  if (need == 0) return -1;
  unsigned low = 0x80, high = 0xBF;  // the second byte's range
  if (b == 0xE0) low = 0xA0;
  if (b == 0xED) high = 0x9F;
  if (b == 0xF0) low = 0x90;
  if (b == 0xF4) high = 0x8F;
  for (int i = 1; i < need; ++i) {
    if (static_cast<size_t>(i) >= n || s[i] < low || s[i] > high) return -i;
    low = 0x80, high = 0xBF;
  }
  return need;
}

}  // namespace

size_t valid_utf8_prefix(std::string_view text) {
  const size_t n = text.size();
  size_t i = 0;
  while (i < n) {
    while (i + 8 <= n && eight_ascii(text.data() + i)) i += 8;
    if (i >= n) break;
    const int length = sequence(reinterpret_cast<const unsigned char*>(text.data()) + i, n - i);
    if (length < 0) return i;
    i += length;
  }
  return n;
}

std::string replace_invalid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size() + 16);
  while (true) {
    const size_t good = valid_utf8_prefix(text);
    out.append(text.substr(0, good));
    text.remove_prefix(good);
    if (text.empty()) return out;
    out += "\xEF\xBF\xBD";
    text.remove_prefix(-sequence(reinterpret_cast<const unsigned char*>(text.data()), text.size()));
  }
}

bool is_ascii(std::string_view text) {
  size_t i = 0;
  for (; i + 8 <= text.size(); i += 8)
    if (!eight_ascii(text.data() + i)) return false;
  for (; i < text.size(); ++i)
    if (static_cast<unsigned char>(text[i]) >= 0x80) return false;
  return true;
}

}  // namespace cairn::data
