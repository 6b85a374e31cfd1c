// The part of a source that one side of the validation split reads: its documents one after another. Where the hash
// holds out none of few documents (one file, say), the end of the longest is held out. A tokenizer that is trained on
// the text has seen that end.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "trainer/data/token_store.h"

namespace cairn::data {

enum class Side { all, train, held_out };

class TokenView {
 public:
  // `fraction` of the documents, by their hash, are held out; Side::all ignores it. Where that is none, the last tokens
  // of the longest document are: `fraction` of all tokens, at most half of that document, none where that is below 2.
  TokenView(std::shared_ptr<const TokenStore> store, Side side, double fraction);

  int64_t tokens() const { return tokens_; }
  int64_t documents() const { return side_ == Side::all ? store_->documents() : static_cast<int64_t>(kept_.size()); }
  const TokenStore& store() const { return *store_; }

  // A piece of one document inside a range of the view.
  struct Span {
    int64_t document;  // index in the store
    int64_t offset;    // tokens into the document
    int64_t count;
  };
  // Reads tokens [first, first + count) of the view and says which documents they are from.
  void read(int64_t first, int64_t count, int32_t* out, std::vector<Span>& spans) const;

  // Where a document lies in the view; nothing where it is on the other side.
  struct Place {
    int64_t begin;   // in the view
    int64_t offset;  // tokens of the document before the view's part of it
    int64_t count;
  };
  std::optional<Place> place_of(int64_t document) const;

  // Windows of T inputs whose successors exist.
  int64_t windows(int64_t context) const { return tokens_ > 0 ? (tokens_ - 1) / context : 0; }

 private:
  std::shared_ptr<const TokenStore> store_;
  Side side_;
  int64_t tokens_ = 0;
  // What the view holds of a document of the store.
  struct Kept {
    int64_t document, offset, count;
    int64_t begin;  // in the view
  };
  void keep(int64_t document, int64_t offset, int64_t count);
  std::vector<Kept> kept_;  // by document
};

}  // namespace cairn::data
