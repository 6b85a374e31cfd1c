// Pre-tokenizers: they cut a normalized text into the pieces that the model encodes one by one.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/data/tokenizer/json_fields.h"
#include "trainer/data/tokenizer/pattern.h"

namespace cairn::data {

// A piece of the text. `head`: it starts where the whole text starts (Metaspace's "first" asks).
struct Piece {
  std::string_view text;
  bool head;
};

// Where pieces go: a call without allocation.
class Sink {
 public:
  template <class Fn>
  Sink(Fn& fn)  // NOLINT: a reference to the caller's lambda
      : object_(&fn), call_([](void* object, Piece piece) { (*static_cast<Fn*>(object))(piece); }) {}
  void operator()(Piece piece) const { call_(object_, piece); }

 private:
  void* object_;
  void (*call_)(void*, Piece);
};

class PreTokenizer {  // immutable, thread-safe
 public:
  virtual ~PreTokenizer() = default;
  // Gives the pieces of PIECE to SINK in order; their texts live until the sink returns. Empty pieces are left out.
  virtual void split(Piece piece, Sink sink) const = 0;
};

// What split() does: from the JSON component at WHERE. ByteLevel at the very end is taken off and told by `byte_level`:
// the model then reads bytes instead of their printable stand-ins.
struct PreTokenizerChain {
  std::vector<std::unique_ptr<PreTokenizer>> stages;
  bool byte_level = false;

  void split(Piece piece, Sink sink, size_t stage = 0) const {
    if (stage == stages.size()) {
      if (!piece.text.empty()) sink(piece);
      return;
    }
    auto next = [&](Piece part) { split(part, sink, stage + 1); };
    stages[stage]->split(piece, next);
  }
};

// `model_reads_bytes`: the model can do ByteLevel's mapping itself.
PreTokenizerChain make_pre_tokenizer(const Json& component, bool model_reads_bytes);

// A Split or a Replace: {"String": s} or {"Regex": r}.
std::unique_ptr<Pattern> make_pattern(const Json& pattern, const std::string& where);

// GPT-2's stand-ins: bytes <-> printable characters.
const std::string& byte_to_char(unsigned char byte);
// -1 where no byte stands for the character.
int char_to_byte(uint32_t code_point);

}  // namespace cairn::data
