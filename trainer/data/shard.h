// Cairn's token shard. Append-only format, version 1. A folder:
//
//   tokens.bin      the ids, little-endian uint16 (vocabulary <= 65,536) or uint32, nothing else
//   documents.bin   optional: little-endian uint64 ends[documents] (token after the document's last, EOS included),
//   then
//                   uint64 hashes[documents] (XXH3-64 of the text, seed 0x6361697268: decides validation_fraction)
//   index.json      written last; its presence means that the shard is whole:
//     (bit 30 of an id that is read and not predicted, where the index has "masked": true)
//     {"format": "cairn-tokens", "version": 1, "dtype": "uint16"|"uint32", "tokens": N,
//      optional: "documents": D, "digest": hex (TokenDigest), "max_id", "max_id_at", "eos", "vocab_size", "tokenizer":
//      digest of the tokenizer, "source": {"name", "files_digest", "options"}}
//
// tokens.bin and an index.json with format, version, dtype, tokens is enough to be read: what is missing is found by
// one scan (scan.h), documents then end after each EOS.
#pragma once

#include <cstdint>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "trainer/data/encoding.h"
#include "trainer/data/token_store.h"

namespace cairn::data {

// Writes a shard; the folder appears whole under its name, or not at all.
class ShardWriter {
 public:
  // Writes beside `folder`, into FOLDER.tmp (removed first if a crash left one).
  // `masked`: ids may carry kUnpredicted.
  ShardWriter(const std::string& folder, const Encoding& encoding, bool masked = false);
  ~ShardWriter();  // without finish: removes what was written
  ShardWriter(const ShardWriter&) = delete;
  ShardWriter& operator=(const ShardWriter&) = delete;

  // One document; EOS is added where the encoding has one. Throws std::runtime_error for an id outside the vocabulary.
  void add(const std::vector<int32_t>& ids, uint64_t document_hash);
  int64_t tokens() const { return tokens_; }
  int64_t documents() const { return static_cast<int64_t>(ends_.size()); }
  // fsync, index, rename. `source` goes into index.json.
  void finish(const nlohmann::json& source);

 private:
  void put(const int32_t* ids, size_t count);
  void write(const void* data, size_t size);
  std::string folder_, beside_;
  int64_t vocab_size_;
  int32_t eos_;
  std::string tokenizer_;
  bool masked_, narrow_;
  std::FILE* file_ = nullptr;
  TokenDigest digest_;
  std::vector<uint64_t> ends_, hashes_;
  std::vector<uint16_t> narrowed_;
  int64_t tokens_ = 0, max_id_ = -1, max_at_ = 0;
};

bool is_shard(const std::string& folder);
nlohmann::json read_index(const std::string& folder);  // throws std::runtime_error naming the file

// A shard without what its index lacks: documents and facts are empty then.
struct OpenShard {
  TokenFile ids;
  std::optional<DocumentTable> documents;
  std::optional<TokenFacts> facts;
  std::string tokenizer;  // "" where unknown
  bool masked = false;
};
// Throws std::runtime_error with file and sizes for a truncated or overlong file, an index that makes no sense.
OpenShard open_shard(const std::string& folder);

// ends[documents], hashes[documents] of a file.
DocumentTable open_documents(const std::string& path, int64_t documents, int64_t tokens);
void write_documents(const std::string& path, const std::vector<uint64_t>& ends, const std::vector<uint64_t>& hashes);

}  // namespace cairn::data
