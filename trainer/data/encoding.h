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

struct Encoding {
  // Appends the ids of one document, BOS included where the tokenizer adds one, EOS excluded. Called from several
  // threads.
  std::function<void(std::string_view text, std::vector<int32_t>& ids)> encode;
  std::function<std::string(const std::vector<int32_t>& ids)> decode;  // may be empty: no text for `data show`
  int64_t vocab_size = 0;
  int32_t eos = -1;    // -1: the tokenizer has none, documents follow one another without a mark
  std::string digest;  // of the tokenizer; part of the cache key, recorded in shards
};

// Holds the tokenizer alive.
Encoding encoding_of(std::shared_ptr<const Tokenizer> tokenizer);

}  // namespace cairn::data
