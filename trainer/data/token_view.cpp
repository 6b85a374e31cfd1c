#include "trainer/data/token_view.h"

#include <algorithm>

#include "trainer/data/documents.h"

namespace cairn::data {

TokenView::TokenView(std::shared_ptr<const TokenStore> store, Side side, double fraction)
    : store_(std::move(store)), side_(side) {
  if (side_ == Side::train && fraction <= 0) side_ = Side::all;
  if (side_ == Side::all) {
    tokens_ = store_->tokens();
    return;
  }
  const auto size = [&](int64_t d) { return store_->document_end(d) - store_->document_begin(d); };
  int64_t longest = 0, out = 0;
  for (int64_t d = 0; d < store_->documents(); ++d) {
    const bool held = data::held_out(store_->document_hash(d), fraction);
    out += held;
    if (size(d) > size(longest)) longest = d;
    if (held == (side_ == Side::held_out)) keep(d, 0, size(d));
  }
  if (out > 0 || store_->documents() == 0) return;
  const double wanted = fraction * static_cast<double>(store_->tokens());
  const int64_t end = std::min(static_cast<int64_t>(wanted), size(longest) / 2), begin = size(longest) - end;
  if (end < 2) return;
  kept_.clear();
  tokens_ = 0;
  if (side_ == Side::held_out) {
    keep(longest, begin, end);
    return;
  }
  for (int64_t d = 0; d < store_->documents(); ++d) keep(d, 0, d == longest ? begin : size(d));
}

void TokenView::keep(int64_t document, int64_t offset, int64_t count) {
  kept_.push_back({document, offset, count, tokens_});
  tokens_ += count;
}

void TokenView::read(int64_t first, int64_t count, int32_t* out, std::vector<Span>& spans) const {
  spans.clear();
  if (side_ == Side::all) {
    store_->read(first, count, out);
    for (int64_t document = store_->document_at(first); count > 0; ++document) {
      const int64_t here = std::min(count, store_->document_end(document) - first);
      if (here == 0) continue;  // a document without tokens
      spans.push_back({document, first - store_->document_begin(document), here});
      first += here;
      count -= here;
    }
    return;
  }
  auto kept = std::upper_bound(kept_.begin(), kept_.end(), first,
                               [](int64_t token, const Kept& k) { return token < k.begin; }) -
              1;
  for (; count > 0; ++kept) {
    const int64_t within = first - kept->begin, here = std::min(count, kept->count - within);
    if (here == 0) continue;
    const int64_t offset = kept->offset + within;
    store_->read(store_->document_begin(kept->document) + offset, here, out);
    spans.push_back({kept->document, offset, here});
    out += here;
    first += here;
    count -= here;
  }
}

std::optional<TokenView::Place> TokenView::place_of(int64_t document) const {
  if (side_ == Side::all) {
    const int64_t begin = store_->document_begin(document);
    return Place{begin, 0, store_->document_end(document) - begin};
  }
  const auto found = std::lower_bound(kept_.begin(), kept_.end(), document,
                                      [](const Kept& k, int64_t wanted) { return k.document < wanted; });
  if (found == kept_.end() || found->document != document) return std::nullopt;
  return Place{found->begin, found->offset, found->count};
}

}  // namespace cairn::data
