#include "trainer/data/example_rows.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <stdexcept>

namespace cairn::data {
namespace {

// Whether one of the tokens after the first is predicted.
bool has_target(const TokenStore& store, int64_t document, int64_t count) {
  if (count < 2) return false;
  if (!store.masked()) return true;
  std::vector<int32_t> ids(count);
  store.read(store.document_begin(document), count, ids.data());
  return std::any_of(ids.begin() + 1, ids.end(), [](int32_t id) { return !(id & kUnpredicted); });
}

}  // namespace

ExampleRows::ExampleRows(const TokenView& view, int64_t context, const std::string& overlong, const std::string& name) {
  const TokenStore& store = view.store();
  std::vector<Part> documents;
  for (int64_t d = 0; d < store.documents(); ++d) {
    const auto place = view.place_of(d);
    if (!place || place->offset != 0) continue;
    if (place->count > context) {
      ++overlong_;
      if (overlong == "error")
        throw std::runtime_error(fmt::format(
            "data source '{}': example {} has {} tokens, more than data.context ({}); choose a longer context, or "
            "data.overlong: truncate or drop",
            name, d, place->count, context));
      if (overlong == "drop") continue;
    }
    const int64_t count = std::min(place->count, context);
    if (has_target(store, d, count)) {
      documents.push_back({d, count});
    } else {
      ++silent_;
    }
  }
  if (documents.empty())
    throw std::runtime_error(
        fmt::format("data source '{}': none of its {} examples has a token to predict within data.context ({})", name,
                    view.documents(), context));
  std::stable_sort(documents.begin(), documents.end(), [](const Part& a, const Part& b) { return a.count > b.count; });
  std::vector<std::vector<Part>> rows;
  std::multimap<int64_t, size_t> room;  // what a row has left -> the row
  for (const Part& document : documents) {
    const auto fit = room.lower_bound(document.count);
    size_t row = rows.size();
    int64_t left = context;
    if (fit != room.end()) {
      left = fit->first, row = fit->second;
      room.erase(fit);
    } else {
      rows.emplace_back();
    }
    rows[row].push_back(document);
    if (left > document.count) room.emplace(left - document.count, row);
  }
  begins_ = {0};
  for (const auto& row : rows) {
    parts_.insert(parts_.end(), row.begin(), row.end());
    begins_.push_back(static_cast<int64_t>(parts_.size()));
  }
}

std::vector<ExampleRows::Part> ExampleRows::parts(int64_t row) const {
  return {parts_.begin() + begins_.at(row), parts_.begin() + begins_.at(row + 1)};
}

int64_t ExampleRows::row_of(int64_t document) const {
  const auto found =
      std::find_if(parts_.begin(), parts_.end(), [&](const Part& part) { return part.document == document; });
  if (found == parts_.end()) return -1;
  return std::upper_bound(begins_.begin(), begins_.end(), found - parts_.begin()) - begins_.begin() - 1;
}

void fill_examples(Batch& batch, int64_t row, const TokenView& view, const ExampleRows& rows, int64_t index,
                   const Encoding& encoding, Provenance from) {
  const int64_t context = batch.context;
  const TokenStore& store = view.store();
  int32_t* inputs = batch.inputs.data() + row * context;
  int32_t* targets = batch.targets.data() + row * context;
  int32_t* positions = batch.positions.data() + row * context;
  int32_t* segments = batch.segments.data() + row * context;
  std::vector<int32_t> ids;
  int64_t at = 0;
  int32_t segment = 0;
  const auto parts = rows.parts(index);
  for (const auto& [document, count] : parts) {
    ids.resize(count);
    store.read(store.document_begin(document), count, ids.data());
    for (int64_t t = 0; t < count; ++t, ++at) {
      const int32_t id = token_of(ids[t], store.masked());
      if (id >= encoding.vocab_size) {
        throw std::runtime_error(
            fmt::format("{}: the id is {}, but the vocabulary has {} entries; the file was changed",
                        store.where(store.document_begin(document) + t), id, encoding.vocab_size));
      }
      const bool predicts = t + 1 < count && !(store.masked() && (ids[t + 1] & kUnpredicted));
      inputs[at] = id;
      targets[at] = predicts ? token_of(ids[t + 1], store.masked()) : -1;
      positions[at] = static_cast<int32_t>(t);
      segments[at] = segment;
    }
    ++segment;
  }
  for (; at < context; ++at, ++segment) {
    inputs[at] = std::max(encoding.eos, 0);
    targets[at] = -1;
    positions[at] = 0;
    segments[at] = segment;
  }
  from.document = parts.front().document;
  from.offset = 0;
  batch.provenance[row] = from;
}

}  // namespace cairn::data
