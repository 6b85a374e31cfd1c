// What the data side needs of a tokenizer.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace cairn::data {

class Tokenizer;

// Set in a stored token that is read and not predicted (the prompt of an example).
inline constexpr int32_t kUnpredicted = 1 << 30;
inline int32_t token_of(int32_t stored, bool masked) { return masked ? stored & ~kUnpredicted : stored; }

struct Encoding {
  // Appends the ids of one document, BOS included where the tokenizer adds one, EOS excluded. Called from several
  // threads.
  std::function<void(std::string_view text, std::vector<int32_t>& ids)> encode;
  // Likewise of text that goes on after other text: nothing is added. Empty: as `encode`.
  std::function<void(std::string_view text, std::vector<int32_t>& ids)> extend;
  std::function<std::string(const std::vector<int32_t>& ids)> decode;  // may be empty: no text for `data show`
  int64_t vocab_size = 0;
  int32_t eos = -1;    // -1: the tokenizer has none, documents follow one another without a mark
  std::string digest;  // of the tokenizer; part of the cache key, recorded in shards
};

// Holds the tokenizer alive.
Encoding encoding_of(std::shared_ptr<const Tokenizer> tokenizer);

}  // namespace cairn::data
