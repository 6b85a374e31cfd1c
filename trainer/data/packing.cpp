#include "trainer/data/packing.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

namespace cairn::data {

int64_t Batch::target_count() const {
  return std::count_if(targets.begin(), targets.end(), [](int32_t target) { return target >= 0; });
}

Batch empty_batch(int64_t rows, int64_t context) {
  Batch batch;
  batch.rows = rows;
  batch.context = context;
  const auto size = static_cast<size_t>(rows * context);
  batch.inputs.resize(size);
  batch.targets.resize(size);
  batch.positions.resize(size);
  batch.segments.resize(size);
  batch.provenance.resize(static_cast<size_t>(rows));
  return batch;
}

void fill_row(Batch& batch, int64_t row, const TokenView& view, int64_t first, bool mask, const Encoding& encoding,
              Provenance from) {
  const int64_t context = batch.context, known = std::min(context + 1, view.tokens() - first);
  std::vector<int32_t> ids(context + 1, std::max(encoding.eos, 0));
  std::vector<TokenView::Span> spans;
  view.read(first, known, ids.data(), spans);
  std::vector<bool> unpredicted(ids.size(), false);
  if (view.store().masked()) {
    for (size_t i = 0; i < ids.size(); ++i) unpredicted[i] = ids[i] & kUnpredicted, ids[i] = token_of(ids[i], true);
  }
  const auto beyond = std::find_if(ids.begin(), ids.end(), [&](int32_t id) { return id >= encoding.vocab_size; });
  if (beyond != ids.end()) {
    int64_t at = beyond - ids.begin();
    auto span = spans.begin();
    for (; at >= span->count; ++span) at -= span->count;
    throw std::runtime_error(
        fmt::format("{}: the id is {}, but the vocabulary has {} entries; the file was changed",
                    view.store().where(view.store().document_begin(span->document) + span->offset + at), *beyond,
                    encoding.vocab_size));
  }
  int32_t* inputs = batch.inputs.data() + row * context;
  int32_t* targets = batch.targets.data() + row * context;
  int32_t* positions = batch.positions.data() + row * context;
  int32_t* segments = batch.segments.data() + row * context;
  std::copy_n(ids.begin(), context, inputs);
  std::copy_n(ids.begin() + 1, context, targets);
  std::fill(targets + std::min(known - 1, context), targets + context, -1);
  for (int64_t t = 0; t < context; ++t) {
    if (unpredicted[t + 1]) targets[t] = -1;
  }
  int64_t begin = 0;
  for (size_t s = 0; s < spans.size(); ++s) {
    const int64_t end = s + 1 < spans.size() ? begin + spans[s].count : context;  // padding counts to the last
    for (int64_t t = begin; t < std::min(end, context); ++t) {
      positions[t] = static_cast<int32_t>(mask ? t - begin : t);
      segments[t] = mask ? static_cast<int32_t>(s) : 0;
    }
    if (mask && s + 1 < spans.size() && end >= 1 && end <= context) targets[end - 1] = -1;
    begin = end;
  }
  from.document = spans[0].document;
  from.offset = spans[0].offset;
  batch.provenance[row] = from;
}

}  // namespace cairn::data
