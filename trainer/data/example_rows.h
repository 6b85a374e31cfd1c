// Rows of whole examples: the documents of a view, packed into rows of T tokens without being cut (best fit, longest
// first, as TRL's `bfd`). A row is a fixed set of documents, so that the order of the data stays arithmetic on numbers
// of rows (sampler.h). Inside a row no document sees another; what is left over is padding, which nobody predicts.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/data/dataset.h"
#include "trainer/data/token_view.h"

namespace cairn::data {

class ExampleRows {
 public:
  // `overlong`, of a document with more than `context` tokens: truncate (its first tokens are kept), drop, error. A
  // document without a token that is predicted is left out. Throws std::runtime_error where none is left, or by
  // `error`, naming the document.
  ExampleRows(const TokenView& view, int64_t context, const std::string& overlong, const std::string& name);

  int64_t rows() const { return static_cast<int64_t>(begins_.size()) - 1; }
  int64_t overlong() const { return overlong_; }  // documents that were truncated or dropped
  int64_t silent() const { return silent_; }      // documents without a token that would be predicted in the row

  struct Part {
    int64_t document;  // in the view's store
    int64_t count;     // tokens, from its first
  };
  // The documents of a row, in order.
  std::vector<Part> parts(int64_t row) const;
  // The row that holds a document; -1: none.
  int64_t row_of(int64_t document) const;

 private:
  std::vector<Part> parts_;      // of all rows
  std::vector<int64_t> begins_;  // [rows + 1]
  int64_t overlong_ = 0, silent_ = 0;
};

// Row `row` of the batch = row `index` of `rows`. Positions restart at each document; every token of the padding is a
// segment of its own. Throws as fill_row.
void fill_examples(Batch& batch, int64_t row, const TokenView& view, const ExampleRows& rows, int64_t index,
                   const Encoding& encoding, Provenance from);

}  // namespace cairn::data
