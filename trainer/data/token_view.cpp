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
  for (int64_t d = 0; d < store_->documents(); ++d) {
    if (data::held_out(store_->document_hash(d), fraction) != (side_ == Side::held_out)) continue;
    kept_.push_back(d);
    begin_.push_back(tokens_);
    tokens_ += store_->document_end(d) - store_->document_begin(d);
  }
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
  auto k = std::upper_bound(begin_.begin(), begin_.end(), first) - begin_.begin() - 1;
  for (; count > 0; ++k) {
    const int64_t document = kept_[k], offset = first - begin_[k];
    const int64_t begin = store_->document_begin(document) + offset;
    const int64_t here = std::min(count, store_->document_end(document) - begin);
    if (here == 0) continue;
    store_->read(begin, here, out);
    spans.push_back({document, offset, here});
    out += here;
    first += here;
    count -= here;
  }
}

std::optional<int64_t> TokenView::begin_of(int64_t document) const {
  if (side_ == Side::all) return store_->document_begin(document);
  const auto found = std::lower_bound(kept_.begin(), kept_.end(), document);
  if (found == kept_.end() || *found != document) return std::nullopt;
  return begin_[found - kept_.begin()];
}

}  // namespace cairn::data
