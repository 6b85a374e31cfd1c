#include "trainer/data/documents.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>
#include <stdexcept>

#include "trainer/data/byte_stream.h"
#include "trainer/data/foldoc.h"
#include "trainer/data/template.h"

namespace cairn::data {
namespace {
constexpr std::string_view kEndOfText = "<|endoftext|>";

bool is_foldoc(const SourceOptions& source) { return source.text == "foldoc"; }

// The pieces of a stream between occurrences of a separator.
class PieceReader {
 public:
  PieceReader(std::unique_ptr<ByteStream> stream, std::string separator)
      : stream_(std::move(stream)), separator_(std::move(separator)) {}

  int64_t consumed() const { return stream_->consumed(); }
  bool split() const { return split_; }  // whether the separator has occurred

  bool next(std::string& piece, int64_t& offset) {
    size_t searched = begin_;
    while (true) {
      const auto found = buffer_.find(separator_, searched);
      if (found != std::string::npos) {
        split_ = true;
        take(found, piece, offset);
        begin_ += separator_.size();
        base_ += static_cast<int64_t>(separator_.size());
        return true;
      }
      if (ended_) break;
      // Keep what may be the start of a separator; never search a byte twice.
      searched = std::max(begin_, buffer_.size() - std::min(buffer_.size(), separator_.size() - 1));
      if (begin_ > 0 && begin_ >= buffer_.size() / 2) {
        buffer_.erase(0, begin_);
        searched -= begin_;
        begin_ = 0;
      }
      const size_t size = buffer_.size();
      buffer_.resize(size + kChunk);
      const size_t got = stream_->read(buffer_.data() + size, kChunk);
      buffer_.resize(size + got);
      ended_ = got == 0;
    }
    if (begin_ == buffer_.size()) return false;
    take(buffer_.size(), piece, offset);
    return true;
  }

 private:
  static constexpr size_t kChunk = 1 << 18;
  void take(size_t end, std::string& piece, int64_t& offset) {
    piece.assign(buffer_, begin_, end - begin_);
    offset = base_;
    base_ += static_cast<int64_t>(end - begin_);
    begin_ = end;
  }
  std::unique_ptr<ByteStream> stream_;
  std::string separator_, buffer_;
  size_t begin_ = 0;  // of what is left of the buffer
  int64_t base_ = 0;  // offset of buffer_[begin_] in the stream
  bool ended_ = false, split_ = false;
};

// Line breaks around a separator belong to it.
void trim_line_breaks(std::string& text, int64_t& offset) {
  const auto first = text.find_first_not_of("\r\n");
  if (first == std::string::npos) {
    text.clear();
    return;
  }
  text.erase(text.find_last_not_of("\r\n") + 1);
  text.erase(0, first);
  offset += static_cast<int64_t>(first);
}
}  // namespace

struct DocumentReader::Impl {
  SourceOptions source;
  std::optional<Template> prompt, completion;  // of a source of examples
  std::vector<FileStamp> files;
  std::vector<std::string> foldoc;
  size_t next_foldoc = 0;
  size_t file = 0;
  int64_t line = 0, before = 0;  // before: bytes of the files already done
  std::unique_ptr<PieceReader> pieces;

  bool next_piece(RawDocument& document) {
    while (file < files.size()) {
      if (!pieces) {
        const std::string separator = !source.jsonl.empty()      ? "\n"
                                      : source.separator.empty() ? std::string(kEndOfText)
                                                                 : source.separator;
        pieces = std::make_unique<PieceReader>(open_stream(files[file].path), separator);
        line = 0;
      }
      if (pieces->next(document.bytes, document.offset)) {
        document.file = file;
        document.line = ++line;
        if (source.jsonl.empty() && pieces->split()) trim_line_breaks(document.bytes, document.offset);
        return true;
      }
      pieces.reset();
      before += files[file++].size;
    }
    return false;
  }
};

DocumentReader::DocumentReader(const SourceOptions& source) : impl_(std::make_unique<Impl>()) {
  impl_->source = source;
  if (has_examples(source))
    impl_->prompt.emplace(source.prompt, "prompt"), impl_->completion.emplace(source.completion, "completion");
  impl_->files = source_files(source);
  if (is_foldoc(source)) impl_->foldoc = read_foldoc();
}
DocumentReader::~DocumentReader() = default;

const std::vector<FileStamp>& DocumentReader::files() const { return impl_->files; }

int64_t DocumentReader::total_bytes() const {
  return std::accumulate(impl_->files.begin(), impl_->files.end(), int64_t{0},
                         [](int64_t sum, const auto& f) { return sum + f.size; });
}

int64_t DocumentReader::consumed() const {
  if (is_foldoc(impl_->source))
    return total_bytes() * static_cast<int64_t>(impl_->next_foldoc) / static_cast<int64_t>(impl_->foldoc.size());
  return impl_->before + (impl_->pieces ? impl_->pieces->consumed() : 0);
}

bool DocumentReader::next(RawDocument& document) {
  if (!is_foldoc(impl_->source)) return impl_->next_piece(document);
  if (impl_->next_foldoc == impl_->foldoc.size()) return false;
  document = {1, static_cast<int64_t>(impl_->next_foldoc), 0, std::move(impl_->foldoc[impl_->next_foldoc])};
  ++impl_->next_foldoc;
  return true;
}

namespace {
std::runtime_error line_error(const std::string& path, int64_t line, const std::string& what) {
  return std::runtime_error(fmt::format("{}: line {}: {}", path, line, what));
}

// The object of a line; nothing for an empty one.
std::optional<nlohmann::ordered_json> object_of(const std::string& path, const RawDocument& document) {
  const auto fail = [&](const std::string& what) { return line_error(path, document.line, what); };
  if (const int64_t bad = invalid_utf8(document.bytes); bad >= 0)
    throw fail(fmt::format("byte {} of the line: invalid UTF-8", bad));
  if (document.bytes.find_first_not_of(" \t\r") == std::string::npos) return std::nullopt;
  nlohmann::ordered_json object;
  try {
    object = nlohmann::ordered_json::parse(document.bytes);
  } catch (const nlohmann::json::parse_error& error) {
    throw fail(fmt::format("not JSON: at byte {} of the line", error.byte));
  }
  if (!object.is_object()) throw fail(fmt::format("expected a JSON object, found {}", object.type_name()));
  return object;
}
}  // namespace

Example DocumentReader::extract_example(RawDocument& document) const {
  const auto& path = impl_->files[document.file].path;
  const auto object = object_of(path, document);
  if (!object) return {};
  std::string prompt, completion;
  try {
    prompt = impl_->prompt->render(*object), completion = impl_->completion->render(*object);
  } catch (const std::runtime_error& error) {
    throw line_error(path, document.line, error.what());
  }
  if (completion.empty()) throw line_error(path, document.line, "the completion is empty: there is nothing to learn");
  return {{{std::move(prompt), false}, {std::move(completion), true}}};
}

std::string DocumentReader::extract(RawDocument& document) const {
  const auto& source = impl_->source;
  const auto& path = impl_->files[document.file].path;
  if (source.jsonl.empty()) {
    if (const int64_t bad = invalid_utf8(document.bytes); bad >= 0) {
      throw std::runtime_error(fmt::format("{}: byte {}: invalid UTF-8 (0x{:02x}); convert the file to UTF-8", path,
                                           document.offset + bad, static_cast<unsigned char>(document.bytes[bad])));
    }
    return std::move(document.bytes);
  }
  const auto object = object_of(path, document);
  if (!object) return {};
  const auto fail = [&](const std::string& what) { return line_error(path, document.line, what); };
  const auto field = object->find(source.field);
  if (field == object->end()) {
    std::vector<std::string> names;
    for (const auto& item : object->items()) names.push_back(item.key());
    throw fail(fmt::format("no field '{}'; it has: {}. Name the one to read with `field`", source.field,
                           fmt::join(names, ", ")));
  }
  if (!field->is_string()) {
    throw fail(fmt::format("field '{}': expected a string, found {}", source.field, field->type_name()));
  }
  return field->get<std::string>();
}

const std::vector<std::string>& text_endings() {
  static const std::vector<std::string> endings = {".txt", ".txt.gz", ".txt.zst"};
  return endings;
}

const std::vector<std::string>& json_endings() {
  static const std::vector<std::string> endings = {".jsonl", ".jsonl.gz", ".jsonl.zst"};
  return endings;
}

std::vector<FileStamp> source_files(const SourceOptions& source) {
  if (!is_foldoc(source)) {
    return source.jsonl.empty() ? list_files(source.text, text_endings()) : list_files(source.jsonl, json_endings());
  }
  std::vector<FileStamp> files;
  for (const auto& path : foldoc_files()) files.push_back(stamp(path));
  return files;
}

std::string document_options(const SourceOptions& source) {
  if (is_foldoc(source)) return fmt::format("foldoc {}", kFoldocCleaning);
  nlohmann::json options{{"jsonl", !source.jsonl.empty()},
                         {"field", source.jsonl.empty() ? "" : source.field},
                         {"separator", source.separator}};
  if (has_examples(source)) options["prompt"] = source.prompt, options["completion"] = source.completion;
  return options.dump();
}

uint64_t document_hash(std::string_view text) {
  return XXH3_64bits_withSeed(text.data(), text.size(), kDocumentHashSeed);
}

bool held_out(uint64_t document_hash, double fraction) {
  return static_cast<double>(document_hash >> 11) * 0x1.0p-53 < fraction;
}

int64_t invalid_utf8(std::string_view text) {
  const auto* s = reinterpret_cast<const unsigned char*>(text.data());
  const size_t size = text.size();
  size_t i = 0;
  while (i < size) {
    uint64_t word;
    if (i + 8 <= size && (std::memcpy(&word, s + i, 8), (word & 0x8080808080808080ull) == 0)) {
      i += 8;
      continue;
    }
    const unsigned char c = s[i];
    if (c < 0x80) {
      ++i;
      continue;
    }
    // The second byte's range excludes overlong forms, surrogates and what lies beyond U+10FFFF (Unicode, table 3-7).
    const int more = c >= 0xC2 && c <= 0xDF ? 1 : (c & 0xF0) == 0xE0 ? 2 : c >= 0xF0 && c <= 0xF4 ? 3 : 0;
    if (more == 0 || i + more >= size) return static_cast<int64_t>(i);
    const unsigned char low = c == 0xE0   ? 0xA0
                              : c == 0xF0 ? 0x90
                                          : 0x80,
                        high = c == 0xED   ? 0x9F
                               : c == 0xF4 ? 0x8F
                                           : 0xBF;
    if (s[i + 1] < low || s[i + 1] > high) return static_cast<int64_t>(i);
    for (int k = 2; k <= more; ++k) {
      if ((s[i + k] & 0xC0) != 0x80) return static_cast<int64_t>(i);
    }
    i += more + 1;
  }
  return -1;
}

}  // namespace cairn::data
