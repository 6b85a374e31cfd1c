#include "trainer/data/scan.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "trainer/data/cache.h"
#include "trainer/data/documents.h"
#include "trainer/data/files.h"
#include "trainer/data/shard.h"

namespace fs = std::filesystem;

namespace cairn::data {
namespace {
struct Table {
  std::vector<uint64_t> ends, hashes;
};

// The document's hash is document_hash of its ids as little-endian int32, computed piece by piece.
class DocumentHasher {
 public:
  DocumentHasher() : state_(XXH3_createState()) { reset(); }
  ~DocumentHasher() { XXH3_freeState(state_); }
  void add(const int32_t* ids, int64_t count) {
    XXH3_64bits_update(state_, ids, static_cast<size_t>(count) * sizeof(int32_t));
  }
  uint64_t finish() {
    const uint64_t hash = XXH3_64bits_digest(state_);
    reset();
    return hash;
  }

 private:
  void reset() { XXH3_64bits_reset_withSeed(state_, kDocumentHashSeed); }
  XXH3_state_t* state_;
};

TokenFacts pass(const TokenFile& ids, const std::vector<uint64_t>& known_ends, int32_t eos, const std::string& name,
                const ProgressCallback& progress, Table& table) {
  TokenFacts facts{0, -1, 0};
  TokenDigest digest;
  DocumentHasher hasher;
  std::vector<int32_t> buffer(1 << 18);
  const auto close = [&](int64_t end) {
    table.ends.push_back(static_cast<uint64_t>(end));
    table.hashes.push_back(hasher.finish());
  };
  ProgressTimer timer(progress);
  for (int64_t at = 0; at < ids.tokens;) {
    const int64_t count = std::min<int64_t>(ids.tokens - at, static_cast<int64_t>(buffer.size()));
    ids.read(at, count, buffer.data());
    digest.add(buffer.data(), count);
    const auto highest = std::max_element(buffer.begin(), buffer.begin() + count);
    if (*highest > facts.max_id) facts = {0, *highest, at + (highest - buffer.begin())};
    int64_t from = 0;
    while (from < count) {
      int64_t to;  // end of this document's part of the buffer
      bool ended;
      if (known_ends.empty()) {
        const auto* found =
            eos < 0 ? buffer.data() + count : std::find(buffer.data() + from, buffer.data() + count, eos);
        ended = found != buffer.data() + count;
        to = found - buffer.data() + (ended ? 1 : 0);
      } else {
        while (static_cast<int64_t>(known_ends[table.ends.size()]) == at + from)
          close(at + from);  // documents without tokens
        const int64_t end = static_cast<int64_t>(known_ends[table.ends.size()]) - at;
        ended = end <= count;
        to = std::min(end, count);
      }
      hasher.add(buffer.data() + from, to - from);
      if (ended) close(at + to);
      from = to;
    }
    at += count;
    timer.report({name, "scan", at * size_of(ids.type), ids.tokens * size_of(ids.type),
                  static_cast<int64_t>(table.ends.size()), at});
  }
  while (table.ends.size() < known_ends.size()) close(ids.tokens);
  if (table.ends.empty() || table.ends.back() != static_cast<uint64_t>(ids.tokens)) close(ids.tokens);
  facts.digest = digest.finish(table.ends.data(), static_cast<int64_t>(table.ends.size()));
  return facts;
}
}  // namespace

Scanned scan(const TokenFile& ids, const std::vector<uint64_t>& known_ends, int32_t eos,
             const std::vector<std::string>& stamped, const std::string& cache, const std::string& name,
             const ProgressCallback& progress) {
  std::string key = fmt::format("scan 1 {} {} {}\n", name_of(ids.type), ids.begin, known_ends.empty() ? eos : -1);
  for (const auto& path : stamped) key += stamp_key(stamp(path));
  const std::string folder = cache_folder(cache) + "/scans/" + digest_hex(key);
  const CacheLock lock(folder);
  if (!fs::exists(folder + "/scan.json")) {
    Table table;
    const TokenFacts facts = pass(ids, known_ends, eos, name, progress, table);
    fs::create_directories(folder);
    write_documents(folder + "/documents.bin", table.ends, table.hashes);
    write_whole(folder + "/scan.json", nlohmann::json{{"file", ids.file->path()},
                                                      {"documents", table.ends.size()},
                                                      {"digest", facts.digest},
                                                      {"max_id", facts.max_id},
                                                      {"max_id_at", facts.max_at}}
                                               .dump() +
                                           "\n");
  }
  const auto known = nlohmann::json::parse(read_whole(folder + "/scan.json"));
  return {open_documents(folder + "/documents.bin", known["documents"], ids.tokens),
          {known["digest"], known["max_id"], known["max_id_at"]}};
}

}  // namespace cairn::data
