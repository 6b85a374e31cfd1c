// Tokens -> rows of a batch.
#pragma once

#include <cstdint>

#include "trainer/data/dataset.h"
#include "trainer/data/token_view.h"

namespace cairn::data {

Batch empty_batch(int64_t rows, int64_t context);

// Row `row` of the batch = tokens [first, first + context] of the view; padded (EOS, target -1) where the view ends
// before. `mask`: positions and segments restart at documents, and the last token of a document predicts nothing.
// `from` lacks the document, which is filled in. Throws std::runtime_error with file and offset for an id beyond the
// vocabulary.
void fill_row(Batch& batch, int64_t row, const TokenView& view, int64_t first, bool mask, const Encoding& encoding,
              Provenance from);

}  // namespace cairn::data
