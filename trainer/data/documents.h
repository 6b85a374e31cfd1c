// The documents of a text source, one after another.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/data/files.h"
#include "trainer/data/source.h"

namespace cairn::data {

// A document as read, not looked at yet: checking and parsing is done by `extract`, on many threads.
struct RawDocument {
  size_t file = 0;
  int64_t offset = 0;  // of its first byte in the (decompressed) file
  int64_t line = 0;    // jsonl: from 1
  std::string bytes;
};

// A document in pieces, of which some are only read.
struct Example {
  struct Piece {
    std::string text;
    bool predicted;
  };
  std::vector<Piece> pieces;
};

class DocumentReader {
 public:
  // A text source (text or jsonl). Throws std::runtime_error where no file is found or one is empty.
  explicit DocumentReader(const SourceOptions& source);
  ~DocumentReader();

  const std::vector<FileStamp>& files() const;
  int64_t total_bytes() const;  // of the files on disk
  int64_t consumed() const;     // of them, so far

  // False at the end. Throws std::runtime_error with file and offset.
  bool next(RawDocument& document);

  // The text of a document; empty: nothing in it, to be left out. Throws std::runtime_error with file and offset (text)
  // or line (jsonl) for invalid UTF-8, JSON that does not parse, a missing field or one that is not a string.
  std::string extract(RawDocument& document) const;
  // Likewise of a source of examples; no pieces: an empty line. An example whose completion is empty is an error.
  Example extract_example(RawDocument& document) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The files of a text source and what, beside their bytes, the documents depend on (part of the cache key).
std::vector<FileStamp> source_files(const SourceOptions& source);
// How the names of the files end that a folder of text, or of JSON lines, stands for.
const std::vector<std::string>& text_endings();
const std::vector<std::string>& json_endings();
std::string document_options(const SourceOptions& source);

// Seen by validation_fraction: the same for every tokenizer, seed and order of the files.
uint64_t document_hash(std::string_view text);
constexpr uint64_t kDocumentHashSeed = 0x6361697268;
// Whether a document with this hash belongs to the `fraction` that is held out.
bool held_out(uint64_t document_hash, double fraction);

// Offset of the first byte that is not part of valid UTF-8, or -1.
int64_t invalid_utf8(std::string_view text);

}  // namespace cairn::data
