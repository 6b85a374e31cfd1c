// Text that grows token by token: decoded a few tokens at a time, cut at stop strings, never shown before it is
// settled.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/data/tokenizer/tokenizer.h"

namespace cairn {

// After each push() the text is what the tokenizer makes of all ids so far; only the ids since the last settled ones
// are decoded for it, so a token costs the same wherever it stands. Empty stop strings are ignored.
class TextStream {
 public:
  // Keeps a reference to the tokenizer.
  explicit TextStream(const data::Tokenizer& tokenizer, std::vector<std::string> stop = {});

  // Adds a token; after it stopped() may be true: then the text ends before the first stop string, and nothing more may
  // be pushed.
  void push(int32_t id);
  bool stopped() const { return stopped_; }

  // Text that no token to come can change and that begins no stop string; each piece is given once. Held back are a
  // character of which bytes are missing, a token that spells a single byte (the bytes after it decide what it is), and
  // an end of the text that a stop string begins with.
  std::string take();
  // The rest, once nothing more comes.
  std::string finish();
  // The whole text so far: settled or not.
  std::string text() const { return settled_ + pending_; }

 private:
  bool open_ended(int32_t id) const;
  void look_for_stop(size_t from);

  const data::Tokenizer& tokenizer_;
  std::vector<std::string> stop_;
  size_t longest_stop_ = 0;
  std::vector<int32_t> window_;  // the ids last settled, and those since
  size_t context_ =
      0;  // how many of them are settled: they are decoded again, since a text's first token may lose a space
  std::string context_text_;  // what they alone decode to
  std::string settled_, pending_;
  size_t shown_ = 0;
  bool stopped_ = false;
};

}  // namespace cairn
