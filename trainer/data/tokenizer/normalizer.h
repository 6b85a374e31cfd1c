// Normalizers: what happens to a text before it is cut into pieces.
#pragma once

#include <memory>
#include <string>

#include "trainer/data/tokenizer/json_fields.h"

namespace cairn::data {

class Normalizer {  // immutable, thread-safe
 public:
  virtual ~Normalizer() = default;
  // Changes TEXT (valid UTF-8). `head` turns false where the first characters of the text were removed.
  virtual void apply(std::string& text, bool& head) const = 0;
};

// From the component `normalizer`; null where there is nothing to do. Throws std::runtime_error naming what is not
// supported.
std::unique_ptr<Normalizer> make_normalizer(const Json& component, const std::string& where = "normalizer");

// SentencePiece's rules as a base64 double-array trie.
std::unique_ptr<Normalizer> make_precompiled(const std::string& base64, const std::string& where);

}  // namespace cairn::data
