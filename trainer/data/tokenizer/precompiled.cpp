// SentencePiece's precompiled_charsmap: u32 size of the trie in bytes, a Darts double-array trie over UTF-8, then
// NUL-terminated replacements that the trie's values point into.
#include <cstring>
#include <vector>

#include "trainer/data/tokenizer/normalizer.h"
#include "trainer/data/tokenizer/unicode.h"
#include "trainer/data/tokenizer/utf8.h"

namespace cairn::data {
namespace {

std::string decode_base64(const std::string& text, const std::string& where) {
  const auto value = [](char c) -> int {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (c >= '0' && c <= '9') return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
  };
  std::string out;
  uint32_t bits = 0;
  int held = 0;
  for (const char c : text) {
    if (c == '=') break;
    const int v = value(c);
    if (v < 0) throw std::runtime_error(where + ": precompiled_charsmap is not base64");
    bits = bits << 6 | v;
    held += 6;
    if (held >= 8) {
      held -= 8;
      out += static_cast<char>(bits >> held & 0xFF);
    }
  }
  return out;
}

class Precompiled : public Normalizer {
 public:
  Precompiled(const std::string& base64, const std::string& where) {
    const std::string blob = decode_base64(base64, where);
    uint32_t bytes = 0;
    if (blob.size() >= 4) std::memcpy(&bytes, blob.data(), 4);
    if (blob.size() < 4 || bytes % 4 != 0 || bytes > blob.size() - 4)
      throw std::runtime_error(
          fmt::format("{}: precompiled_charsmap is cut: a trie of {} bytes in {}", where, bytes, blob.size()));
    trie_.resize(bytes / 4);
    std::memcpy(trie_.data(), blob.data() + 4, bytes);
    replacements_ = blob.substr(4 + bytes);
  }

  // As the official library does it: a cluster of fewer than 6 bytes is looked up whole, otherwise its characters.
  void apply(std::string& text, bool&) const override {
    std::string out;
    out.reserve(text.size());
    size_t begin = 0;
    for (const size_t end : grapheme_ends(text)) {
      const auto cluster = std::string_view(text).substr(begin, end - begin);
      if (cluster.size() >= 6 || !transform(cluster, out))
        for_each_char(cluster, [&](uint32_t, std::string_view bytes) {
          if (!transform(bytes, out)) out += bytes;
        });
      begin = end;
    }
    text = std::move(out);
  }

 private:
  // Appends the replacement of the shortest key that KEY begins with; false where there is none.
  bool transform(std::string_view key, std::string& out) const {
    // A unit of the Darts double array: bit 31 and bits 0-7 the label, bit 8 has-leaf, the offset in bits 10-30.
    const auto offset = [](uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); };
    if (trie_.empty()) return false;
    size_t node = offset(trie_[0]);
    for (const char c : key) {
      const auto label = static_cast<unsigned char>(c);
      if (label == 0) return false;
      node ^= label;
      if (node >= trie_.size()) return false;
      const uint32_t unit = trie_[node];
      if ((unit & ((1u << 31) | 0xFF)) != label) return false;
      node ^= offset(unit);
      if (unit >> 8 & 1) {
        if (node >= trie_.size()) return false;
        const uint32_t at = trie_[node] & 0x7FFFFFFFu;
        if (at < replacements_.size()) out += replacements_.c_str() + at;
        return true;
      }
    }
    return false;
  }

  std::vector<uint32_t> trie_;
  std::string replacements_;
};

}  // namespace

std::unique_ptr<Normalizer> make_precompiled(const std::string& base64, const std::string& where) {
  return std::make_unique<Precompiled>(base64, where);
}

}  // namespace cairn::data
