// Decoders: tokens -> text.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "trainer/data/tokenizer/json_fields.h"

namespace cairn::data {

class Decoder {  // immutable, thread-safe
 public:
  virtual ~Decoder() = default;
  // Rewrites the list of tokens; what is left at the end is put together.
  virtual void apply(std::vector<std::string>& tokens) const = 0;
  // The same, but bytes that are no UTF-8 (of a cut character) stay as they are.
  virtual void apply_raw(std::vector<std::string>& tokens) const { apply(tokens); }
};

// From the component `decoder`; null where there is none (tokens are then joined by spaces).
std::unique_ptr<Decoder> make_decoder(const Json& component, const std::string& where = "decoder");

}  // namespace cairn::data
