#include "trainer/data/token_store.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace cairn::data {
namespace {
struct TypeRow {
  TokenType type;
  const char* name;
  int64_t size;
};
constexpr std::array<TypeRow, 6> kTypes = {{{TokenType::uint8, "uint8", 1},
                                            {TokenType::uint16, "uint16", 2},
                                            {TokenType::uint32, "uint32", 4},
                                            {TokenType::int16, "int16", 2},
                                            {TokenType::int32, "int32", 4},
                                            {TokenType::int64, "int64", 8}}};

constexpr int32_t kNoId = std::numeric_limits<int32_t>::max();

template <class T>
void widen(const std::byte* from, int64_t count, int32_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, from + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
    if constexpr (sizeof(T) < 4 && !std::numeric_limits<T>::is_signed) {
      out[i] = value;
    } else {
      out[i] = value < 0 || static_cast<uint64_t>(value) > static_cast<uint64_t>(kNoId) ? kNoId
                                                                                        : static_cast<int32_t>(value);
    }
  }
}
}  // namespace

int64_t size_of(TokenType type) { return kTypes[static_cast<size_t>(type)].size; }
const char* name_of(TokenType type) { return kTypes[static_cast<size_t>(type)].name; }

TokenType token_type(const std::string& name) {
  for (const auto& row : kTypes) {
    if (name == row.name) return row.type;
  }
  throw std::invalid_argument(
      fmt::format("dtype: '{}' is not one of uint8, uint16, uint32, int16, int32, int64", name));
}

void TokenFile::read(int64_t first, int64_t count, int32_t* out) const {
  const std::byte* from = file->data() + begin + first * size_of(type);
  switch (type) {
    case TokenType::uint8:
      return widen<uint8_t>(from, count, out);
    case TokenType::uint16:
      return widen<uint16_t>(from, count, out);
    case TokenType::uint32:
      return widen<uint32_t>(from, count, out);
    case TokenType::int16:
      return widen<int16_t>(from, count, out);
    case TokenType::int32:
      return widen<int32_t>(from, count, out);
    case TokenType::int64:
      return widen<int64_t>(from, count, out);
  }
}

std::string TokenFile::where(int64_t token) const {
  return fmt::format("{}: token {} (byte {})", file->path(), token, begin + token * size_of(type));
}

TokenStore::TokenStore(std::vector<TokenPart> parts) : parts_(std::move(parts)), token_base_{0}, document_base_{0} {
  std::vector<uint64_t> digests;
  for (const auto& part : parts_) {
    token_base_.push_back(token_base_.back() + part.ids.tokens);
    document_base_.push_back(document_base_.back() + part.documents.documents);
    digests.push_back(part.facts.digest);
    masked_ |= part.masked;
  }
  digest_ = digests.size() == 1 ? digests[0] : XXH3_64bits(digests.data(), digests.size() * sizeof(uint64_t));
}

void TokenStore::check_vocabulary(int64_t vocab_size) const {
  for (const auto& part : parts_) {
    if (part.facts.max_id < vocab_size) continue;
    std::string found = std::to_string(part.facts.max_id);
    if (part.facts.max_id == kNoId) found = "a negative number or one above 2^31";
    throw std::runtime_error(fmt::format(
        "{}: the id is {}, but the tokenizer's vocabulary has {} entries; these tokens were made with another "
        "tokenizer, or the data type is not {}",
        part.ids.where(part.facts.max_at), found, vocab_size, name_of(part.ids.type)));
  }
}

void TokenStore::verify() const {
  std::vector<int32_t> ids(1 << 16);
  for (const auto& part : parts_) {
    TokenDigest digest;
    for (int64_t at = 0; at < part.ids.tokens;) {
      const int64_t count = std::min<int64_t>(part.ids.tokens - at, static_cast<int64_t>(ids.size()));
      part.ids.read(at, count, ids.data());
      digest.add(ids.data(), count);
      at += count;
    }
    const uint64_t found = digest.finish(part.documents.ends, part.documents.documents);
    if (found != part.facts.digest) {
      throw std::runtime_error(
          fmt::format("{}: the digest of the tokens is {:016x}, expected {:016x}: the file was changed",
                      part.ids.file->path(), found, part.facts.digest));
    }
  }
}

size_t TokenStore::part_of_token(int64_t token) const {
  return std::upper_bound(token_base_.begin(), token_base_.end(), token) - token_base_.begin() - 1;
}

size_t TokenStore::part_of_document(int64_t document) const {
  return std::upper_bound(document_base_.begin(), document_base_.end(), document) - document_base_.begin() - 1;
}

int64_t TokenStore::document_begin(int64_t document) const {
  const size_t p = part_of_document(document);
  const int64_t local = document - document_base_[p];
  return token_base_[p] + (local == 0 ? 0 : static_cast<int64_t>(parts_[p].documents.ends[local - 1]));
}

int64_t TokenStore::document_end(int64_t document) const {
  const size_t p = part_of_document(document);
  return token_base_[p] + static_cast<int64_t>(parts_[p].documents.ends[document - document_base_[p]]);
}

uint64_t TokenStore::document_hash(int64_t document) const {
  const size_t p = part_of_document(document);
  return parts_[p].documents.hashes[document - document_base_[p]];
}

int64_t TokenStore::document_at(int64_t token) const {
  const size_t p = part_of_token(token);
  const auto& table = parts_[p].documents;
  const auto* end =
      std::upper_bound(table.ends, table.ends + table.documents, static_cast<uint64_t>(token - token_base_[p]));
  return document_base_[p] + (end - table.ends);
}

void TokenStore::read(int64_t first, int64_t count, int32_t* out) const {
  for (size_t p = part_of_token(first); count > 0; ++p) {
    const int64_t local = first - token_base_[p], here = std::min(count, parts_[p].ids.tokens - local);
    parts_[p].ids.read(local, here, out);
    first += here;
    count -= here;
    out += here;
  }
}

std::string TokenStore::where(int64_t token) const {
  const size_t p = part_of_token(token);
  return parts_[p].ids.where(token - token_base_[p]);
}

TokenDigest::TokenDigest() : state_(XXH3_createState()) { XXH3_64bits_reset(static_cast<XXH3_state_t*>(state_)); }
TokenDigest::~TokenDigest() { XXH3_freeState(static_cast<XXH3_state_t*>(state_)); }

void TokenDigest::add(const int32_t* ids, int64_t count) {
  XXH3_64bits_update(static_cast<XXH3_state_t*>(state_), ids, static_cast<size_t>(count) * sizeof(int32_t));
}

uint64_t TokenDigest::finish(const uint64_t* ends, int64_t documents) const {
  const std::array<uint64_t, 2> both = {XXH3_64bits_digest(static_cast<XXH3_state_t*>(state_)),
                                        XXH3_64bits(ends, static_cast<size_t>(documents) * sizeof(uint64_t))};
  return XXH3_64bits(both.data(), sizeof(both));
}

}  // namespace cairn::data
