#include "trainer/data/pipeline.h"

#include <fmt/format.h>
#include <omp.h>

#include <exception>
#include <future>
#include <stdexcept>
#include <vector>

#include "trainer/data/cache.h"
#include "trainer/data/documents.h"

namespace cairn::data {
namespace {
constexpr size_t kBytesPerThread = size_t{4} << 20;

struct Item {
  RawDocument raw;
  std::vector<int32_t> ids;
  uint64_t hash = 0;
  int64_t bytes = 0;
  std::exception_ptr error;
};

// An error of the reader is kept as the last item, so that errors come out in the order of the documents.
std::vector<Item> read_ahead(DocumentReader& reader, size_t bytes) {
  std::vector<Item> items;
  size_t size = 0;
  while (size < bytes) {
    Item item;
    try {
      if (!reader.next(item.raw)) break;
    } catch (...) {
      item.error = std::current_exception();
      items.push_back(std::move(item));
      break;
    }
    size += item.raw.bytes.size() + 64;
    items.push_back(std::move(item));
  }
  return items;
}

void encode(const DocumentReader& reader, const Encoding& encoding, bool examples, Item& item) {
  if (item.error) return;
  try {
    if (examples) {
      const Example example = reader.extract_example(item.raw);
      std::string text;
      for (const auto& piece : example.pieces) {
        if (piece.text.empty()) continue;
        const size_t first = item.ids.size();
        (text.empty() || !encoding.extend ? encoding.encode : encoding.extend)(piece.text, item.ids);
        text += piece.text;
        if (piece.predicted) continue;
        for (size_t i = first; i < item.ids.size(); ++i) item.ids[i] |= kUnpredicted;
      }
      item.bytes = static_cast<int64_t>(text.size());
      item.hash = document_hash(text);
      return;
    }
    const std::string text = reader.extract(item.raw);
    item.bytes = static_cast<int64_t>(text.size());
    item.hash = document_hash(text);
    if (!text.empty()) encoding.encode(text, item.ids);
  } catch (...) {
    item.error = std::current_exception();
  }
}
}  // namespace

Tokenized tokenize(const SourceOptions& source, const Encoding& encoding, int threads, const ProgressCallback& progress,
                   ShardWriter& writer) {
  if (threads <= 0) threads = omp_get_max_threads();
  DocumentReader reader(source);
  const size_t batch = kBytesPerThread * static_cast<size_t>(threads);
  const int64_t total = reader.total_bytes();
  const std::string name = source.name.empty() ? default_name(source) : source.name;
  Tokenized done;
  ProgressTimer timer(progress);
  auto items = read_ahead(reader, batch);
  while (!items.empty()) {
    const int64_t consumed = reader.consumed();
    auto next = std::async(std::launch::async, [&] { return read_ahead(reader, batch); });
    const auto count = static_cast<int64_t>(items.size());
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (int64_t i = 0; i < count; ++i) encode(reader, encoding, has_examples(source), items[i]);
    for (auto& item : items) {
      if (item.error) {
        next.wait();
        std::rethrow_exception(item.error);
      }
      if (item.bytes == 0) continue;
      writer.add(item.ids, item.hash);
      done.bytes += item.bytes;
    }
    done.documents = writer.documents();
    done.tokens = writer.tokens();
    items = next.get();
    timer.report({name, "tokenize", items.empty() ? total : consumed, total, done.documents, done.tokens});
  }
  if (done.documents == 0) {
    throw std::runtime_error(fmt::format("{}: no document with text in it", reader.files().front().path));
  }
  return done;
}

}  // namespace cairn::data
