#include "trainer/data/tokenizer/added_tokens.h"

#include <algorithm>

#include "trainer/data/tokenizer/unicode.h"
#include "trainer/data/tokenizer/utf8.h"

namespace cairn::data {

void TokenFinder::add(const std::string& pattern, const AddedToken* token) {
  if (pattern.empty()) return;
  starts_[static_cast<unsigned char>(pattern[0])] = true;
  uint32_t node = 0;
  for (const char c : pattern) {
    const auto byte = static_cast<unsigned char>(c);
    auto& children = nodes_[node].children;
    const auto at =
        std::find_if(children.begin(), children.end(), [&](const auto& child) { return child.first == byte; });
    if (at != children.end()) {
      node = at->second;
    } else {
      children.emplace_back(byte, static_cast<uint32_t>(nodes_.size()));
      node = static_cast<uint32_t>(nodes_.size());
      nodes_.emplace_back();
    }
  }
  if (!nodes_[node].token) nodes_[node].token = token;
}

bool TokenFinder::find(std::string_view text, size_t from, Hit& hit) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!starts_[static_cast<unsigned char>(text[begin])]) continue;
    const Node* node = &nodes_[0];
    hit.token = nullptr;
    for (size_t i = begin; i < text.size(); ++i) {
      const auto byte = static_cast<unsigned char>(text[i]);
      const auto at = std::find_if(node->children.begin(), node->children.end(),
                                   [&](const auto& child) { return child.first == byte; });
      if (at == node->children.end()) break;
      node = &nodes_[at->second];
      if (node->token) hit = {begin, i + 1, node->token};
    }
    if (hit.token) return true;
  }
  return false;
}

bool TokenFinder::fits(std::string_view text, const AddedToken& token, size_t done, size_t& begin, size_t& end) {
  const uint16_t* bmp = bmp_classes();
  int length;
  const auto space = [&](uint32_t c) { return (char_class(bmp, c) & kSpace) != 0; };
  if (token.single_word) {
    if (begin > 0 && is_word(last_code_point(text.substr(0, begin)))) return false;
    if (end < text.size() && is_word(decode_utf8(text.data() + end, length))) return false;
  }
  if (token.lstrip) {
    size_t left = begin;
    while (left > 0 && space(last_code_point(text.substr(0, left)))) {
      do --left;
      while ((static_cast<unsigned char>(text[left]) & 0xC0) == 0x80);
    }
    begin = std::max(left, done);
  }
  if (token.rstrip)
    while (end < text.size() && space(decode_utf8(text.data() + end, length))) end += length;
  return true;
}

}  // namespace cairn::data
