// The tokens of a source, memory-mapped, with its documents: what every shard format is read into.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "trainer/data/mapped_file.h"

namespace cairn::data {

enum class TokenType { uint8, uint16, uint32, int16, int32, int64 };
int64_t size_of(TokenType type);
const char* name_of(TokenType type);
// Throws std::invalid_argument naming the types there are.
TokenType token_type(const std::string& name);

// The ids of one file. `begin` may be unaligned.
struct TokenFile {
  std::shared_ptr<const MappedFile> file;
  int64_t begin = 0;  // bytes before the first id
  TokenType type = TokenType::uint16;
  int64_t tokens = 0;

  // Widens ids [first, first + count) to int32. An id that does not fit gives INT32_MAX, beyond any vocabulary.
  void read(int64_t first, int64_t count, int32_t* out) const;
  std::string where(int64_t token) const;  // "PATH: token 5 (byte 10)"
};

// Documents of a file: document d is the tokens [ends[d-1], ends[d]).
struct DocumentTable {
  int64_t documents = 0;
  const uint64_t* ends = nullptr;     // [documents], not falling; the last is the number of tokens
  const uint64_t* hashes = nullptr;   // [documents]: document_hash of the text where it is known, else of the ids
  std::shared_ptr<const void> owner;  // keeps both alive
};

// What is known of a file without reading it again.
struct TokenFacts {
  uint64_t digest = 0;  // token_digest
  int64_t max_id = 0, max_at = 0;
};

struct TokenPart {
  TokenFile ids;
  DocumentTable documents;
  TokenFacts facts;
  bool masked = false;  // ids may carry kUnpredicted (encoding.h)
};

class TokenStore {
 public:
  explicit TokenStore(std::vector<TokenPart> parts);

  int64_t tokens() const { return token_base_.back(); }
  int64_t documents() const { return document_base_.back(); }
  bool masked() const { return masked_; }      // any part is
  uint64_t digest() const { return digest_; }  // of the one part, or of all the parts' digests

  // Throws std::runtime_error naming file and offset for an id that is not below vocab_size.
  void check_vocabulary(int64_t vocab_size) const;
  // Reads everything; throws std::runtime_error where a digest differs.
  void verify() const;

  int64_t document_begin(int64_t document) const;
  int64_t document_end(int64_t document) const;
  uint64_t document_hash(int64_t document) const;
  int64_t document_at(int64_t token) const;  // O(log documents)
  void read(int64_t first, int64_t count, int32_t* out) const;
  std::string where(int64_t token) const;

 private:
  size_t part_of_token(int64_t token) const;
  size_t part_of_document(int64_t document) const;
  std::vector<TokenPart> parts_;
  std::vector<int64_t> token_base_, document_base_;  // [parts + 1]
  uint64_t digest_ = 0;
  bool masked_ = false;
};

// The digest of a token stream: XXH3-64 over (XXH3-64 of the ids as little-endian uint32, XXH3-64 of the document ends
// as little-endian uint64). It does not depend on how the ids are stored.
class TokenDigest {
 public:
  TokenDigest();
  ~TokenDigest();
  TokenDigest(const TokenDigest&) = delete;
  TokenDigest& operator=(const TokenDigest&) = delete;
  void add(const int32_t* ids, int64_t count);
  uint64_t finish(const uint64_t* ends, int64_t documents) const;

 private:
  void* state_;
};

}  // namespace cairn::data
